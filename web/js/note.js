/** Text on a node, and pictures beside it. */

import { addElement, addStyle, make } from './element.js'

addStyle(`
    .dreamcache-note { overflow: auto; padding: 2px 6px; white-space: pre-line; }
    .dreamcache-note img { height: 80px; margin: 2px 4px 2px 0; border-radius: 2px; }`)

/** Of five lines: the longest of what to do where a file is absent, in any language. */
const HEIGHT = 90

/**
 * Add a note to a node.
 *
 * @param {GraphNode} node
 * @param {{ name?: string, height?: number }} [options] `name`: of its own among the node's, for the Vue renderer shows
 *     but one of each.
 */
export function addNote(node, { name = 'dreamcache_note', height = HEIGHT } = {}) {
    const [, before] = node.size
    const element = make('div', 'dreamcache-note')
    element.role = 'status'
    element.tabIndex = 0 // A long text is scrolled with the arrow keys.
    const widget = addElement(node, name, element, height)
    return {
        /**
         * @param {string} text
         * @param {boolean} [isProblem]
         * @param {string[]} [pictures] Their addresses.
         */
        show(text, isProblem = false, pictures = []) {
            const images = pictures.map((address) => Object.assign(make('img'), { src: address, alt: '' }))
            element.replaceChildren(...images, ...(images.length ? [make('br')] : []), text)
            element.title = text
            element.classList.toggle('dreamcache-problem', isProblem)
            node.setDirtyCanvas(true, true)
        },
        remove() {
            node.removeWidget(widget)
            node.setSize([node.size[0], before])
        },
    }
}
