/** What a node says while it runs goes when the run ends: "image 3 of 12" is no result. */

import { api } from '../../../scripts/api.js'
import { nodesOfType, widgetOf } from './nodes.js'

/** The front end's own name for the text that a server sends to a running node. */
const TEXT = '$$node-text-preview'
const RUNNING_LONG = ['DreamCacheCompare', 'DreamCacheEvaluate', 'DreamCacheTrainAdapter']

export function clearProgressText() {
    for (const end of /** @type {const} */ (['execution_success', 'execution_error', 'execution_interrupted'])) {
        api.addEventListener(end, clear)
    }
}

function clear() {
    for (const node of nodesOfType(...RUNNING_LONG)) {
        const text = widgetOf(node, TEXT)
        if (text) node.removeWidget(text)
    }
}
