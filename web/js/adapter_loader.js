/** Adapter Loader and DreamCache say what the chosen file is, and their lists which files can't be used. */

import { isListed, nodesOfType } from './nodes.js'
import { addNote } from './note.js'
import * as server from './server.js'
import { inDigits, say } from './words.js'

export const ADAPTER_LOADERS = ['DreamCacheAdapterLoader', 'DreamCacheOneNode']

/** @type {Record<string, server.AdapterDescription>} */
let described = {}

/** @type {WeakMap<GraphNode, () => Promise<void>>} */
const updates = new WeakMap()

/** Ask the server what all adapters are, for the lists, and show it. */
export async function describeAdapters() {
    try {
        described = await server.adapters()
    } catch {
        return // The notes say so.
    }
    for (const node of nodesOfType(...ADAPTER_LOADERS)) updates.get(node)?.()
}

/**
 * Add what the chosen file is to a node that was just made.
 *
 * @param {GraphNode} node
 */
export function showAdapter(node) {
    const widget = node.widgets?.find((one) => one.name === 'adapter_name')
    if (!widget) return
    widget.options.getOptionLabel = label
    Object.assign(widget.options, { placeholder: say('no_adapter') })
    const note = addNote(node)

    const update = async () => {
        const name = String(widget.value ?? '')
        if (!name) return note.show(say('put_adapter'))
        if (!isListed(widget)) return note.show(say('absent', { name }), true)
        note.show(say('reading', { name }))
        const [text, isProblem] = await inWords(name)
        if (widget.value === name) note.show(text, isProblem)
    }
    updates.set(node, update)
    // The value is set by the list, and by opening a workflow.
    const { callback } = widget
    widget.callback = function (...args) {
        callback?.apply(this, args)
        update()
    }
    const { onConfigure } = node
    node.onConfigure = function (...args) {
        onConfigure?.apply(this, args)
        update()
    }
    update()
}

/** @param {string | null} [name] */
function label(name) {
    if (!name) return say('no_adapter')
    const problem = described[name]?.problem
    return problem ? `⚠ ${name}: ${problem}` : name
}

/**
 * @param {string} name
 * @returns {Promise<[text: string, isProblem: boolean]>}
 */
async function inWords(name) {
    try {
        const description = await server.adapter(name)
        return description.problem ? [description.problem, true] : [facts(description), false]
    } catch (error) {
        return [server.reason(error), true]
    }
}

/** @param {server.AdapterDescription} description */
function facts({ base_model, format, layers, parameters, provenance, size }) {
    const megabytes = say('megabytes', { size: inDigits(Math.round(size / 1e5) / 10) })
    if (!layers || !parameters) return `${format}\n${megabytes}`
    const first = [base_model, say('layers', { count: layers.length }), say('parameters', { count: inDigits(parameters) })]
    return [[...first, megabytes].join(' · '), ...(provenance ?? []), layers.join(', '), format].join('\n')
}
