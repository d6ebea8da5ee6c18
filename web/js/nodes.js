/** Nodes of the whole workflow, and what is chosen on them. */

import { app } from '../../../scripts/app.js'

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
 * Whether a list has the file that is chosen in it: workflows come from others, and files go.
 *
 * @param {GraphWidget} widget
 */
export function isListed(widget) {
    const { values } = widget.options
    return Array.isArray(values) && values.includes(String(widget.value))
}
