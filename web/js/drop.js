/** What is dropped on the canvas becomes the node that loads it, connected to the DreamCache node that waits for it. */

import { app } from '../../../scripts/app.js'
import { addInOneStep, set, widgetOf } from './nodes.js'
import { REFERENCE_LOADER } from './reference_loader.js'
import { reason, saveReference } from './server.js'
import { DROPS, setting } from './settings.js'
import { say } from './words.js'

const REFERENCE = 'DREAMCACHE_REFERENCE_CACHE'
const FORMAT = '"dreamcache.reference_cache"'
/** Bytes of a header. */
const MOST_READ = 2 ** 24

/** @type {{ node: GraphNode, loader: string } | null} A node that a picture was dropped for, and what will load it. */
let waiting = null

/** Take what is dropped before the front end does, and leave it to it what isn't ours. */
export function watchDrops() {
    window.addEventListener('drop', takeDrop, { capture: true })
}

/** @param {DragEvent} event */
function takeDrop(event) {
    waiting = null
    const files = [...(event.dataTransfer?.files ?? [])]
    const isOnGraph = event.target instanceof Element && event.target.closest('#graph-canvas-container, #graph-canvas')
    if (!files.length || !isOnGraph) return
    app.canvas.adjustMouseEvent(event)
    const { canvasX: x, canvasY: y } = /** @type {DragEvent & { canvasX: number, canvasY: number }} */ (event)
    const under = app.canvas.graph?.getNodeOnPos(x, y) ?? null
    if (under && 'onDragDrop' in under && under.onDragDrop) return // It takes files itself.
    if (files.every((file) => file.name.toLowerCase().endsWith('.safetensors'))) {
        event.preventDefault()
        event.stopPropagation()
        takeFiles(files, [x, y], under)
    } else if (setting(DROPS) && files.every((file) => file.type.startsWith('image/'))) {
        const node = selected('IMAGE')
        // Several pictures come as a batch.
        if (node) waiting = { node, loader: files.length > 1 ? 'BatchImagesNode' : 'LoadImage' }
    }
}

/**
 * Connect a node that the front end makes of dropped pictures.
 *
 * @param {GraphNode} node That was just made.
 */
export function connectDropped(node) {
    if (!waiting || waiting.loader !== node.comfyClass) return
    const { node: target } = waiting
    waiting = null
    const { onAdded } = node
    node.onAdded = function (...args) {
        onAdded?.apply(this, args)
        node.onAdded = onAdded
        connect(node, target, 'IMAGE')
    }
}

/** What is opened has other nodes. */
export function forgetDrop() {
    waiting = null
}

/**
 * @param {File[]} files
 * @param {[number, number]} place Of the graph.
 * @param {GraphNode | null} under What they were dropped on.
 */
async function takeFiles(files, place, under) {
    const target = setting(DROPS) ? selected(REFERENCE) : null
    for (const [number, file] of files.entries()) {
        if (!(await isReference(file))) {
            await app.handleFile(file)
            continue
        }
        try {
            const { name } = await saveReference(file)
            if (under?.comfyClass === REFERENCE_LOADER) choose(under, name)
            else await addInOneStep(() => addLoader(name, [place[0], place[1] + number * 260], target))
        } catch (error) {
            app.extensionManager.toast.add({ severity: 'error', summary: say('not_taken'), detail: reason(error) })
        }
    }
}

/** @param {File} file */
async function isReference(file) {
    const length = new DataView(await file.slice(0, 8).arrayBuffer())
    if (length.byteLength < 8) return false
    const end = 8 + Math.min(Number(length.getBigUint64(0, true)), MOST_READ)
    return (await file.slice(8, end).text()).includes(FORMAT)
}

/**
 * @param {string} name
 * @param {[number, number]} place
 * @param {GraphNode | null} target
 */
function addLoader(name, place, target) {
    const node = LiteGraph.createNode(REFERENCE_LOADER)
    if (!node) return
    node.pos = place
    const graph = app.canvas.graph ?? app.graph
    graph.add(node)
    choose(node, name)
    if (target) connect(node, target, REFERENCE)
    app.canvas.selectItems([node])
}

/**
 * @param {GraphNode} node
 * @param {string} name
 */
function choose(node, name) {
    const widget = widgetOf(node, 'reference_name')
    if (!widget) return
    // The list is older than the file. To ask for all lists anew blocks the page of some front ends for good.
    const { values } = widget.options
    if (Array.isArray(values) && !values.includes(name)) values.push(name)
    set(widget, name)
}

/**
 * The selected node, if it is one of the pack's that lacks an input of this type.
 *
 * @param {string} type
 */
function selected(type) {
    const nodes = Object.values(app.canvas.selected_nodes ?? {})
    const [node] = nodes
    return nodes.length === 1 && node.comfyClass?.includes('DreamCache') && freeInput(node, type) >= 0 ? node : null
}

/**
 * @param {GraphNode} node
 * @param {string} type
 */
const freeInput = (node, type) => node.inputs.findIndex((input) => input.type === type && input.link == null)

/**
 * @param {GraphNode} from
 * @param {GraphNode} to
 * @param {string} type
 */
function connect(from, to, type) {
    const input = freeInput(to, type)
    if (input < 0 || to.graph !== from.graph) return
    from.connect(0, to, input)
}
