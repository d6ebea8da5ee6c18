/** The values of a list, in the language of the front end. What is saved, and what is sent to the server, stays. */

import { texts } from './words.js'

/**
 * Newer front ends show these labels in both renderers, older ones on the canvas only.
 *
 * @param {GraphNode} node That was just made.
 */
export function labelValues(node) {
    for (const widget of node.widgets ?? []) {
        const values = widget.options?.values
        const known = texts('dreamcacheValues')
        if (!Array.isArray(values) || !values.length || !values.every((value) => value in known)) continue
        widget.options.getOptionLabel = (value) => texts('dreamcacheValues')[String(value)] ?? String(value ?? '')
    }
}
