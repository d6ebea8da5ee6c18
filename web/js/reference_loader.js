/** Load Reference Cache shows the pictures that the chosen file was made of, and says what else it tells. */

import { fileLoader } from './file_loader.js'
import * as server from './server.js'
import { inMegabytes, say } from './words.js'

export const REFERENCE_LOADER = 'DreamCacheLoadReferenceCache'

export const referenceLoader = fileLoader({
    types: [REFERENCE_LOADER],
    widgetName: 'reference_name',
    height: 192,
    all: server.references,
    one: server.reference,
    none: () => say('no_reference'),
    put: () => say('put_reference'),
    absent: (name) => say('absent_reference', { name }),
    facts: ({ description, size }) => `${description}\n${inMegabytes(size)}`,
    pictures: (name, { thumbnails }) => Array.from({ length: thumbnails }, (_, number) => server.thumbnail(name, number)),
})
