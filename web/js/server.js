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

/**
 * @typedef {object} ReferenceDescription As in dreamcache_core/reference_file.py.
 * @property {number} size
 * @property {string | null} base_model
 * @property {string | null} description
 * @property {number} thumbnails
 * @property {string | null} problem
 */

/**
 * @typedef {object} LossCurve As in dreamcache_core/loss_curve.py.
 * @property {number} total
 * @property {number[]} steps
 * @property {(number | null)[]} losses
 * @property {(number | null)[]} means
 * @property {number | null} low
 * @property {number | null} high
 */

/** @typedef {{ step: number, gap: number, error: number }} Validation As in dreamcache_core/training/validation.py. */

/** @returns {Promise<Record<string, AdapterDescription>>} Of all adapters, by their names. */
export const adapters = () => get('adapters')

/**
 * @param {string} name
 * @returns {Promise<AdapterDescription>}
 */
export const adapter = (name) => get(`adapters/${encodeURIComponent(name)}`)

/** @returns {Promise<Record<string, ReferenceDescription>>} Of all saved references, by their names. */
export const references = () => get('references')

/**
 * @param {string} name
 * @returns {Promise<ReferenceDescription>}
 */
export const reference = (name) => get(`references/${encodeURIComponent(name)}`)

/**
 * The address of a picture in a saved reference.
 *
 * @param {string} name
 * @param {number} number
 */
export const thumbnail = (name, number) => api.apiURL(`/dreamcache/thumbnails/${number}/${encodeURIComponent(name)}`)

/**
 * Put a file into the folder of saved references.
 *
 * @param {File} file
 * @returns {Promise<{ name: string }>} What it is listed by there.
 */
export const saveReference = (file) =>
    get(`references/${encodeURIComponent(file.name)}`, { method: 'POST', body: file })

/**
 * @param {string} name
 * @returns {Promise<{ base_model: string | null }>}
 */
export const checkpoint = (name) => get(`checkpoints/${encodeURIComponent(name)}`)

/**
 * What DreamCache Strengths makes of these inputs.
 *
 * @param {string} overSampling
 * @param {string} values
 * @returns {Promise<{ curve: number[] | null, problem: string | null }>}
 */
export const curve = (overSampling, values) =>
    get(`curve?${new URLSearchParams({ over_sampling: overSampling, values })}`)

/**
 * @param {string} name
 * @param {{ first: number, last: number } | null} steps Of which the losses are asked for; null: of all.
 * @returns {Promise<{ curve: LossCurve, samples: number[], validations: Validation[] }>}
 */
export const training = (name, steps) =>
    get(`trainings/${encodeURIComponent(name)}?${steps ? `first=${steps.first}&last=${steps.last}` : ''}`)

/**
 * The address of the samples that were drawn after a step of a training.
 *
 * @param {string} name
 * @param {number} step
 */
export const samples = (name, step) => api.apiURL(`/dreamcache/samples/${step}/${encodeURIComponent(name)}`)

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
 * @param {RequestInit} [options]
 */
async function get(path, options) {
    const response = await api.fetchApi(`/dreamcache/${path}`, options)
    const answer = await response.json()
    if (!response.ok) throw new Error(answer.error)
    return answer
}
