/** Texts in the language that the front end is set to, from locales/<language>/main.json. */

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'

/** @type {Record<string, Record<string, any>>} */
let languages = {}

export async function loadWords() {
    languages = await (await api.fetchApi('/i18n')).json()
}

/**
 * A section of main.json; in English if there is none in this language.
 *
 * @param {string} section
 * @returns {Record<string, any>}
 */
export const texts = (section) => languages[language()]?.[section] ?? languages.en?.[section] ?? {}

/**
 * A text, with `{name}` replaced by its value.
 *
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 */
export function say(key, values = {}) {
    /** @type {string} */
    const text = texts('dreamcache')[key] ?? languages.en?.dreamcache?.[key] ?? key
    return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name]))
}

/** @param {number} number */
export const inDigits = (number) => number.toLocaleString(language())

/** @param {number} bytes */
export const inMegabytes = (bytes) => say('megabytes', { size: inDigits(Math.round(bytes / 1e5) / 10) })

/** @returns {string} */
const language = () => app.extensionManager.setting.get('Comfy.Locale') ?? 'en'
