/** A node that shows a sheet grows with it, so that its letters can be read: the renderers fit it into the node. */

import { api } from '../../../scripts/api.js'

const SHEETS = ['DreamCachePreviewReferenceCache', 'DreamCachePreviewAttention', 'DreamCacheCompare']
/** Of a sheet on a node: its letters, a 44th of that, are 12 pixels high (dreamcache_core/figures/tile_sheet.py). */
const READABLE_WIDTH = 540
/** What the renderers leave free beside a picture, and what they put above and below it. */
const [BESIDE, AROUND] = [16, 76]

/** @param {GraphNode} node That was just made. */
export function makeRoomForSheet(node) {
    if (!SHEETS.includes(String(node.comfyClass))) return
    const [, bare] = node.computeSize()
    let seen = ''
    const { onExecuted } = node
    node.onExecuted = async function (output) {
        onExecuted?.call(this, output)
        const [width, height] = await sizeOf(output?.images?.[0])
        if (!width || seen === `${width}×${height}`) return // One may have made the node smaller since.
        seen = `${width}×${height}`
        const shown = Math.min(node.size[0] - BESIDE, READABLE_WIDTH)
        const needed = Math.ceil(bare + AROUND + (height * shown) / width)
        if (node.size[1] < needed) node.setSize([node.size[0], needed])
    }
}

/**
 * @param {Record<string, string> | undefined} image As the server names it.
 * @returns {Promise<[number, number]>} Zeros if there is none.
 */
async function sizeOf(image) {
    const picture = new Image()
    if (!image) return [0, 0]
    picture.src = api.apiURL(`/view?${new URLSearchParams(image)}`)
    await picture.decode().catch(() => {}) // The node itself says that it can't be read.
    return [picture.naturalWidth, picture.naturalHeight]
}
