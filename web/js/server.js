/** What the server tells of files: nodes/routes.py. */

import { api } from '../../../scripts/api.js'
import { say } from './words.js'

/**
 * @typedef {object} AdapterDescription As in dreamcache_core/adapter_file.py.
 * @property {number} size
 * @property {string | null} format
 * @property {string | null} base_model
 * @property {string[] | null} layers
 * @property {number | null} parameters
 * @property {string[] | null} provenance
 * @property {string | null} problem
 */

/** @returns {Promise<Record<string, AdapterDescription>>} Of all adapters, by their names. */
export const adapters = () => get('adapters')

/**
 * @param {string} name
 * @returns {Promise<AdapterDescription>}
 */
export const adapter = (name) => get(`adapters/${encodeURIComponent(name)}`)

/**
 * @param {string} name
 * @returns {Promise<{ base_model: string | null }>}
 */
export const checkpoint = (name) => get(`checkpoints/${encodeURIComponent(name)}`)

/**
 * Why one of these failed, for the person at the graph.
 *
 * @param {unknown} error
 */
export function reason(error) {
    return error instanceof Error && !(error instanceof TypeError) ? error.message : say('no_server')
}

/**
 * Throws an Error for the person at the graph, or a TypeError if the server doesn't answer.
 *
 * @param {string} path
 */
async function get(path) {
    const response = await api.fetchApi(`/dreamcache/${path}`)
    const answer = await response.json()
    if (!response.ok) throw new Error(answer.error)
    return answer
}
