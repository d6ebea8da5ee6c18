/** Elements on a node, by either renderer. They are no part of the workflow. */

const STYLE = document.createElement('style')
// Colours of the theme, whichever it is. The Vue renderer's nodes would grow as text comes; to undo, that is a change.
STYLE.textContent = `
    .dreamcache {
        box-sizing: border-box; border-radius: 4px; font: 11px/15px sans-serif;
        color: var(--input-text); background: var(--comfy-input-bg);
    }
    .lg-node .dreamcache { min-height: var(--dreamcache-height); max-height: var(--dreamcache-height); }
    .dreamcache :focus-visible, .dreamcache:focus-visible { outline: 1px solid currentColor; }
    .dreamcache button {
        padding: 0 6px; border: 1px solid var(--border-color); border-radius: 4px; font: inherit; cursor: pointer;
        color: inherit; background: none;
    }
    .dreamcache button[aria-pressed='true'] { color: var(--comfy-input-bg); background: var(--input-text); }
    .dreamcache button:disabled { opacity: 0.4; cursor: default; }
    .dreamcache-problem {
        color: color-mix(in srgb, var(--error-text) 50%, var(--input-text)); border-left: 3px solid var(--error-text);
    }`
document.head.append(STYLE)

/**
 * @param {string} css
 */
export function addStyle(css) {
    STYLE.textContent += css
}

/**
 * Add an element of a fixed height to a node.
 *
 * @param {GraphNode} node
 * @param {string} name Of its widget.
 * @param {HTMLElement} element
 * @param {number} height
 * @returns {GraphWidget}
 */
export function addElement(node, name, element, height) {
    element.classList.add('dreamcache')
    element.style.setProperty('--dreamcache-height', `${height}px`)
    const getHeight = () => height
    const options = { serialize: false, hideOnZoom: false, margin: 4, getMinHeight: getHeight, getMaxHeight: getHeight }
    const { addDOMWidget } = /** @type {WithDOMWidgets} */ (/** @type {unknown} */ (node))
    const widget = addDOMWidget.call(node, name, name, element, options)
    widget.serialize = false
    // The canvas makes room when it draws, but not always as much; to undo, that is a change of its own.
    const tall = node.computeSize()[1]
    if (!LiteGraph.vueNodesMode && node.size[1] < tall) node.setSize([node.size[0], tall])
    return widget
}

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {string} [className]
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, className = '') {
    const element = document.createElement(tag)
    element.className = className
    return element
}

/**
 * @template {keyof SVGElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string | number>} attributes
 * @returns {SVGElementTagNameMap[Tag]}
 */
export function draw(tag, attributes) {
    const element = document.createElementNS('http://www.w3.org/2000/svg', tag)
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value))
    return element
}

/**
 * A button.
 *
 * @param {string} text
 * @param {string} title
 * @param {() => unknown} press
 */
export function makeButton(text, title, press) {
    const button = make('button')
    button.type = 'button'
    button.textContent = text
    button.title = title
    button.addEventListener('click', press)
    return button
}

/**
 * Follow the pointer from where it is pressed on an element until it is released.
 *
 * @param {Element} element
 * @param {(event: PointerEvent) => unknown} start Returns false where there is nothing to drag.
 * @param {(event: PointerEvent) => unknown} move
 * @param {() => unknown} [end]
 */
export function whenDragged(element, start, move, end) {
    let isDragging = false
    const on = /** @type {HTMLElement} */ (element)
    on.addEventListener('pointerdown', (event) => {
        if (event.button || start(event) === false) return
        isDragging = true
        on.setPointerCapture(event.pointerId)
    })
    on.addEventListener('pointermove', (event) => isDragging && move(event))
    for (const type of /** @type {const} */ (['pointerup', 'pointercancel'])) {
        on.addEventListener(type, () => {
            if (isDragging) end?.()
            isDragging = false
        })
    }
}

/**
 * Do what a key is for, and let the front end have the others.
 *
 * @param {HTMLElement | SVGElement} element
 * @param {Record<string, () => unknown>} actions
 */
export function whenKey(element, actions) {
    const on = /** @type {HTMLElement} */ (element)
    on.addEventListener('keydown', (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(actions, event.key)) return
        event.preventDefault()
        event.stopPropagation()
        actions[event.key]()
    })
}
