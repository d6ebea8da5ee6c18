/** Adapter Loader and DreamCache say what the chosen file is, and their lists which files can't be used. */

import { fileLoader } from './file_loader.js'
import * as server from './server.js'
import { inDigits, inMegabytes, say } from './words.js'

export const adapterLoader = fileLoader({
    types: ['DreamCacheAdapterLoader', 'DreamCacheOneNode'],
    widgetName: 'adapter_name',
    all: server.adapters,
    one: server.adapter,
    none: () => say('no_adapter'),
    put: () => say('put_adapter'),
    absent: (name) => say('absent', { name }),
    facts,
})

/** @param {server.AdapterDescription} description */
function facts({ base_model, format, layers, parameters, provenance, size }) {
    if (!size) return say('own_attention')
    if (!layers || !parameters) return `${format}\n${inMegabytes(size)}`
    const first = [base_model, say('layers', { count: layers.length }), say('parameters', { count: inDigits(parameters) })]
    return [[...first, inMegabytes(size)].join(' · '), ...(provenance ?? []), layers.join(', '), format].join('\n')
}
