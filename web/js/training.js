/** Train Adapter shows how its training goes: the loss curve and the newest samples, which the server keeps. */

import { api } from '../../../scripts/api.js'
import { addElement, addStyle, make } from './element.js'
import { makeLossCurve } from './loss_curve.js'
import { nodesOfType, whenSet, widgetOf } from './nodes.js'
import * as server from './server.js'
import { LOG_SCALE, whenSettingChanges } from './settings.js'
import { say } from './words.js'

export const TRAIN = 'DreamCacheTrainAdapter'

addStyle(`
    .dreamcache-training { display: flex; flex-direction: column; }
    .dreamcache-training img { flex: 1; min-height: 0; object-fit: contain; }`)

/** Of the loss curve, and below it a sheet whose letters can be read. */
const HEIGHT = 520
const MILLISECONDS_BETWEEN = 2000

/** @typedef {{ refresh: () => Promise<void>, redraw: () => void }} View */

/** @type {WeakMap<GraphNode, View>} */
const views = new WeakMap()

/**
 * Add its training to a node that was just made.
 *
 * @param {GraphNode} node
 */
export function showTraining(node) {
    const widget = widgetOf(node, 'name')
    if (!widget) return
    const element = make('div', 'dreamcache-training')
    const curve = makeLossCurve(() => refresh())
    const sheet = make('img')
    sheet.alt = ''
    element.append(curve.element, sheet)
    let latest = 0

    async function refresh() {
        const name = String(widget?.value ?? '')
        const number = ++latest
        try {
            const { curve: losses, samples, validations } = await server.training(name, curve.steps)
            if (number !== latest) return
            curve.show(losses, validations, losses.total ? '' : say('no_losses'))
            const newest = samples.at(-1)
            show(newest === undefined ? '' : server.samples(name, newest))
        } catch (error) {
            if (number === latest) curve.show(null, [], server.reason(error))
        }
    }

    /** @param {string} address */
    function show(address) {
        if (sheet.getAttribute('src') !== address) sheet.src = address
        sheet.hidden = !address
    }

    addElement(node, 'dreamcache_training', element, HEIGHT)
    views.set(node, { refresh, redraw: curve.redraw })
    whenSet(node, [widget], refresh)
    refresh()
}

/** Keep to what is running. */
export function watchTraining() {
    let asked = 0
    api.addEventListener('progress_state', () => {
        if (Date.now() - asked < MILLISECONDS_BETWEEN) return
        asked = Date.now()
        refreshAll()
    })
    for (const end of /** @type {const} */ (['execution_success', 'execution_error', 'execution_interrupted'])) {
        api.addEventListener(end, refreshAll)
    }
    whenSettingChanges(LOG_SCALE, () => nodesOfType(TRAIN).forEach((node) => views.get(node)?.redraw()))
}

function refreshAll() {
    for (const node of nodesOfType(TRAIN)) views.get(node)?.refresh()
}
