/** The pack's section of the settings. */

import { app } from '../../../scripts/app.js'

export const LOG_SCALE = 'DreamCache.Training.LogScale'
export const EDITORS = 'DreamCache.Nodes.Editors'
export const DROPS = 'DreamCache.Nodes.Drops'

/** @type {Record<string, (() => unknown)[]>} */
const listeners = {}

/** @type {any[]} For the published types know no settings but the front end's own. */
export const SETTINGS = [
    {
        id: EDITORS,
        category: ['DreamCache', 'DreamCache nodes', 'Editors'],
        name: 'Show an editor on DreamCache Strengths',
        tooltip:
            'Set layer strengths as bars and the sampling curve as points, with the pointer or the keyboard. ' +
            'Reopen the workflow to change existing nodes.',
        type: 'boolean',
        defaultValue: true,
    },
    {
        id: DROPS,
        category: ['DreamCache', 'DreamCache nodes', 'Drops'],
        name: 'Connect dropped files',
        tooltip:
            'Drop a saved reference or an image on the canvas to connect it to the selected DreamCache node.',
        type: 'boolean',
        defaultValue: true,
    },
    {
        id: LOG_SCALE,
        category: ['DreamCache', 'DreamCache training', 'LogScale'],
        name: 'Show loss curves on a logarithmic scale',
        type: 'boolean',
        defaultValue: false,
        // It is called before the setting has its new value.
        onChange: () => queueMicrotask(() => listeners[LOG_SCALE]?.forEach((listener) => listener())),
    },
]

/**
 * @param {string} id
 * @returns {boolean}
 */
export const setting = (id) => Boolean(app.extensionManager.setting.get(id))

/**
 * @param {string} id
 * @param {boolean} value
 */
export const setSetting = (id, value) => app.extensionManager.setting.set(id, value)

/**
 * @param {string} id
 * @param {() => unknown} listener
 */
export function whenSettingChanges(id, listener) {
    listeners[id] = [...(listeners[id] ?? []), listener]
}
