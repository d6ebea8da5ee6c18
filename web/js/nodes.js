/** Nodes of the whole workflow, and what is chosen on them. */

import { app } from '../../../scripts/app.js'

/** In which the Vue renderer has drawn new nodes and measured them; on a slow machine, too. */
const FRAMES = 10

/**
 * In its subgraphs, too.
 *
 * @param {string[]} types
 * @returns {GraphNode[]}
 */
export function nodesOfType(...types) {
    const graphs = [app.rootGraph, ...app.rootGraph.subgraphs.values()]
    return graphs.flatMap((graph) => graph.nodes).filter((node) => types.includes(String(node.comfyClass)))
}

/**
 * @param {GraphNode} node
 * @param {string} name
 * @returns {GraphWidget | undefined}
 */
export const widgetOf = (node, name) => node.widgets?.find((one) => one.name === name)

/**
 * Whether a list has the file that is chosen in it: workflows come from others, and files go.
 *
 * @param {GraphWidget} widget
 */
export function isListed(widget) {
    const { values } = widget.options
    return Array.isArray(values) && values.includes(String(widget.value))
}

/**
 * Call `update` when widgets of a node are set: by hand, and by opening a workflow.
 *
 * @param {GraphNode} node
 * @param {GraphWidget[]} widgets
 * @param {() => unknown} update
 */
export function whenSet(node, widgets, update) {
    for (const widget of widgets) {
        const { callback } = widget
        widget.callback = function (...args) {
            callback?.apply(this, args)
            update()
        }
    }
    const { onConfigure } = node
    node.onConfigure = function (...args) {
        onConfigure?.apply(this, args)
        update()
    }
}

/**
 * Set a widget as its own controls do.
 *
 * @param {GraphWidget} widget
 * @param {string | number} value
 */
export function set(widget, value) {
    widget.value = value
    widget.callback?.(value, app.canvas)
}

/**
 * Change the graph in one step of undoing.
 *
 * @template T
 * @param {() => T} change
 * @returns {T}
 */
export function change(change) {
    beginChange()
    try {
        return change()
    } finally {
        endChange()
    }
}

/**
 * Add nodes in one step of undoing, with the sizes that the renderer gives them.
 *
 * @template T
 * @param {() => T} add
 * @returns {Promise<T>} When they are drawn.
 */
export async function addInOneStep(add) {
    const added = change(add)
    const { workflow } = /** @type {any} */ (app.extensionManager)
    const { activeWorkflow } = workflow
    for (let frame = 0; frame < FRAMES; frame++) await new Promise(requestAnimationFrame)
    if (workflow.activeWorkflow === activeWorkflow) {
        // Else the front end takes the sizes for a change of the user's, to be undone first.
        activeWorkflow.changeTracker.activeState = JSON.parse(JSON.stringify(app.rootGraph.serialize()))
    }
    return added
}

/** What is changed from here on is one step of undoing. */
export const beginChange = () => app.canvas.emitBeforeChange()

/** Until here. */
export const endChange = () => app.canvas.emitAfterChange()
