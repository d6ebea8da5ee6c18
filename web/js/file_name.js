/** `%date:yyyy-MM-dd%` and `%Node.widget%` in the names of what our nodes save, as in those of ComfyUI's own nodes. */

import { app } from '../../../scripts/app.js'
import { widgetOf } from './nodes.js'

/** By the nodes: the widget with the name. @type {Record<string, string>} */
const NAMES = {
    DreamCacheSaveAdapter: 'filename_prefix',
    DreamCacheSaveReferenceCache: 'filename_prefix',
    DreamCacheSaveTriplet: 'folder',
}

/**
 * Replace them in what Run sends to the server; the node keeps what was typed.
 *
 * @param {GraphNode} node
 */
export function replaceInName(node) {
    const widget = widgetOf(node, NAMES[String(node.comfyClass)])
    if (!widget) return
    widget.serializeValue = () => comfyAPI.utils.applyTextReplacements(app, String(widget.value))
}
