/** Encode Reference shows, after a run, the images that it encoded: masked and cropped. */

import { addNote } from './note.js'

export const ENCODE = 'DreamCacheEncodeReference'

/** Of a row of thumbnails. */
const HEIGHT = 92

/**
 * @param {GraphNode} node That was just made.
 */
export function showEncoded(node) {
    /** @type {ReturnType<typeof addNote> | null} */
    let note = null
    const { onExecuted } = node
    node.onExecuted = function (output) {
        onExecuted?.call(this, output)
        /** @type {string[]} */
        const thumbnails = output?.dreamcache_thumbnails ?? []
        if (!thumbnails.length) return
        note ??= addNote(node, { height: HEIGHT })
        note.show('', false, thumbnails.map((jpeg) => `data:image/jpeg;base64,${jpeg}`))
    }
}
