/** Slots and links of the pack's own types have colours of their own, which suit dark and light themes. */

import { app } from '../../../scripts/app.js'

/** @type {Record<string, string>} */
const COLOURS = {
    DREAMCACHE_ADAPTER: '#c2863a',
    DREAMCACHE_REFERENCE_CACHE: '#3fa39b',
    DREAMCACHE_STRENGTHS: '#8f7cc9',
}

export function paintSlots() {
    // The Vue renderer takes them from the page's style, the canvas from its own list, which themes overwrite.
    const style = document.createElement('style')
    const variables = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`)
    style.textContent = `:root { ${variables.join(' ')} }`
    document.head.append(style)
    paintCanvas()
    new MutationObserver(paintCanvas).observe(document.documentElement, { attributeFilter: ['style'] })
}

function paintCanvas() {
    Object.assign(app.canvas.default_connection_color_byType, COLOURS)
    Object.assign(LGraphCanvas.link_type_colors, COLOURS)
}
