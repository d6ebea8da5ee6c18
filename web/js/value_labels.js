/** The words in lists, in the language of the front end. What is saved, and what is sent to the server, stays. */

import { texts } from './words.js'

/**
 * A value, as the front end shows it.
 *
 * @param {string} value
 * @returns {string}
 */
export const valueLabel = (value) => texts('dreamcacheValues')[value] ?? value

/**
 * Label the words in a node's lists. Newer front ends show that in both renderers, older ones on the canvas only.
 *
 * @param {GraphNode} node That was just made.
 */
export function labelValues(node) {
    for (const { options } of node.widgets ?? []) {
        const values = Array.isArray(options?.values) ? options.values : []
        if (!values.some((value) => value in texts('dreamcacheValues'))) continue
        options.getOptionLabel ??= (value) => valueLabel(value ?? '')
    }
}
