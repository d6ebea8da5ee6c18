/** Fresh nodes are wide enough for their titles, and for the sheets that they show. */

/** @type {Record<string, [number, number]>} Width and height, of nodes that show something to be read. */
const SIZES = {
    DreamCachePreviewReferenceCache: [660, 640],
    DreamCachePreviewAttention: [660, 880],
    DreamCacheCompare: [660, 1000],
    DreamCacheTrainAdapter: [560, 0],
    DreamCacheStrengths: [420, 0],
}
/** Room beside a title: the collapse button and the badge. */
const BESIDE_TITLE = 64
const FONT = '14px Inter, sans-serif'

const pen = document.createElement('canvas').getContext('2d')

/**
 * @param {GraphNode} node That was just made: a workflow that is opened sets its own size later.
 */
export function widen(node) {
    if (pen) pen.font = FONT
    const title = BESIDE_TITLE + (pen?.measureText(node.title).width ?? 0)
    const [width, height] = SIZES[String(node.comfyClass)] ?? [0, 0]
    node.setSize([Math.max(node.size[0], width, title), Math.max(node.size[1], height)])
}
