/** Text on a node, by either renderer. It is no part of the workflow. */

const STYLE = document.createElement('style')
STYLE.textContent = `
    .dreamcache-note {
        box-sizing: border-box; overflow: auto; padding: 2px 6px; border-radius: 4px; white-space: pre-line;
        font: 11px/15px sans-serif; color: var(--input-text); background: var(--comfy-input-bg);
    }
    .dreamcache-note:focus-visible { outline: 1px solid currentColor; }
    .dreamcache-note-problem { color: var(--error-text); }`
document.head.append(STYLE)

const HEIGHT = 38

/**
 * Add a note to a node.
 *
 * @param {GraphNode} node
 * @param {string} [name] Of its own among the node's: the Vue renderer shows but one of each.
 */
export function addNote(node, name = 'dreamcache_note') {
    const [, before] = node.size
    const element = document.createElement('div')
    element.className = 'dreamcache-note'
    element.role = 'status'
    element.tabIndex = 0 // A long text is scrolled with the arrow keys.
    const height = () => HEIGHT
    const options = { serialize: false, hideOnZoom: false, margin: 4, getMinHeight: height, getMaxHeight: height }
    const { addDOMWidget } = /** @type {WithDOMWidgets} */ (/** @type {unknown} */ (node))
    const widget = addDOMWidget.call(node, name, 'dreamcache_note', element, options)
    widget.serialize = false
    return {
        /**
         * @param {string} text
         * @param {boolean} [isProblem]
         */
        show(text, isProblem = false) {
            element.textContent = text
            element.title = text
            element.classList.toggle('dreamcache-note-problem', isProblem)
            node.setDirtyCanvas(true, true)
        },
        remove() {
            node.removeWidget(widget)
            node.setSize([node.size[0], before])
        },
    }
}
