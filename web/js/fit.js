/** Apply DreamCache and DreamCache warn, before anything runs, when the files say that model and adapter can't fit. */

import { api } from '../../../scripts/api.js'
import { isListed, nodesOfType, widgetOf } from './nodes.js'
import { addNote } from './note.js'
import * as server from './server.js'
import { say } from './words.js'

const ACTIVE = 0

/** @type {WeakMap<GraphNode, ReturnType<typeof addNote>>} */
const warnings = new WeakMap()

/** @type {Map<string, string | null>} What was found out of an adapter and a checkpoint. */
const known = new Map()
let latest = 0

/** Check all nodes whenever the graph changes. */
export function watchFit() {
    api.addEventListener('graphChanged', checkAll)
    checkAll()
}

/** Check all nodes again, for files may have changed. */
export function checkFitAgain() {
    known.clear()
    checkAll()
}

async function checkAll() {
    const check = ++latest
    for (const node of nodesOfType('ApplyDreamCache', 'DreamCacheOneNode')) {
        const text = await warning(node)
        if (check !== latest) return // The graph has changed meanwhile.
        show(node, text)
    }
}

/**
 * @param {GraphNode} node
 * @param {string | null} text
 */
function show(node, text) {
    if (text) {
        if (!warnings.has(node)) warnings.set(node, addNote(node, { name: 'dreamcache_warning', height: 100 }))
        warnings.get(node)?.show(text, true)
    } else {
        warnings.get(node)?.remove()
        warnings.delete(node)
    }
}

/** @param {GraphNode} node */
async function warning(node) {
    const adapter = chosenFile(node, 'DREAMCACHE_ADAPTER', 'adapter_name')
    const checkpoint = chosenFile(node, 'MODEL', 'ckpt_name')
    if (!adapter || !checkpoint) return null
    const both = `${adapter}\n${checkpoint}`
    if (!known.has(both)) {
        try {
            known.set(both, await misfit(adapter, checkpoint))
        } catch {
            return null // Nothing is known of them now.
        }
    }
    return known.get(both) ?? null
}

/**
 * @param {string} adapter
 * @param {string} checkpoint
 */
async function misfit(adapter, checkpoint) {
    const [{ base_model: trained }, { base_model: model }] = await Promise.all([
        server.adapter(adapter),
        server.checkpoint(checkpoint),
    ])
    return trained && model && trained !== model ? say('misfit', { adapter, trained, checkpoint, model }) : null
}

/**
 * The file that a loader upstream has chosen, if one can tell: through whatever nodes, by their inputs of the same type.
 *
 * @param {GraphNode} node
 * @param {string} type
 * @param {string} widgetName
 * @returns {string | null}
 */
function chosenFile(node, type, widgetName) {
    /** @type {GraphNode | null} */
    let upstream = node
    const seen = new Set()
    while (upstream && !seen.has(upstream)) {
        seen.add(upstream)
        const widget = widgetOf(upstream, widgetName)
        const isGiven = upstream.inputs.some((input) => input.name === widgetName && input.link != null)
        if (widget) return upstream.mode === ACTIVE && !isGiven && isListed(widget) ? String(widget.value) : null
        /** @type {number} */
        const slot = upstream.inputs.findIndex((input) => input.type === type && input.link != null)
        upstream = slot < 0 ? null : upstream.getInputNode(slot)
    }
    return null
}
