/** A loss curve to look into: zoomed with the wheel, moved with the pointer, and both with the keyboard. */

import { addStyle, draw, make, makeButton, whenDragged, whenKey } from './element.js'
import { LOG_SCALE, setting, setSetting } from './settings.js'
import { inDigits, say } from './words.js'

addStyle(`
    .dreamcache-curve { position: relative; height: 150px; padding: 18px 4px 16px; box-sizing: border-box; cursor: crosshair; }
    .dreamcache-curve svg { width: 100%; height: 100%; overflow: visible; pointer-events: none; }
    .dreamcache-curve path { fill: none; vector-effect: non-scaling-stroke; }
    .dreamcache-curve .single { stroke: #7f93b8; stroke-opacity: 0.5; }
    .dreamcache-curve .mean { stroke: #4d86e0; stroke-width: 2; }
    .dreamcache-curve .gap { stroke: #2a9d4a; stroke-width: 2; }
    .dreamcache-curve span { position: absolute; pointer-events: none; }
    .dreamcache-tools { display: flex; gap: 4px; padding: 0 4px 4px; }`)

const ZOOM = 0.7
const FEWEST = 10
/** How much of the height is left free above and below. */
const MARGIN = 0.05

/** @typedef {import('./server.js').LossCurve} Curve */
/** @typedef {import('./server.js').Validation} Validation */
/** @typedef {{ first: number, last: number }} Steps */

/**
 * @param {() => unknown} ask Called when other steps are to be seen: `steps` has them.
 */
export function makeLossCurve(ask) {
    /** @type {Curve | null} */
    let curve = null
    /** @type {Steps | null} */
    let steps = null
    /** @type {Validation[]} */
    let validations = []

    const element = make('div')
    const plot = make('div', 'dreamcache-curve')
    plot.tabIndex = 0
    plot.role = 'img'
    plot.dataset.captureWheel = 'true' // While it has the focus, as the Vue renderer knows it.
    const picture = draw('svg', { viewBox: '0 0 1 1', preserveAspectRatio: 'none', 'aria-hidden': 'true' })
    const single = draw('path', { class: 'single' })
    const mean = draw('path', { class: 'mean' })
    const gap = draw('path', { class: 'gap' })
    picture.append(single, mean, gap)
    const title = label('left: 6px; top: 2px')
    const gapTitle = label('right: 6px; top: 2px; color: color-mix(in srgb, #2a9d4a 40%, var(--input-text))')
    const high = label('left: 6px; top: 18px')
    const low = label('left: 6px; bottom: 16px')
    const first = label('left: 6px; bottom: 0')
    const last = label('right: 6px; bottom: 0')
    plot.append(picture, title, gapTitle, high, low, first, last)
    const log = makeButton('log', say('log_scale'), () => setSetting(LOG_SCALE, !setting(LOG_SCALE)))
    const tools = make('div', 'dreamcache-tools')
    const buttons = [
        log,
        makeButton('+', say('zoom_in'), () => zoom(ZOOM)),
        makeButton('−', say('zoom_out'), () => zoom(1 / ZOOM)),
        makeButton('⤢', say('zoom_all'), () => see(null)),
    ]
    tools.append(...buttons)
    element.append(plot, tools)

    /** @param {string} place */
    function label(place) {
        const text = make('span')
        text.style.cssText = place
        return text
    }

    /** @returns {Steps} */
    const seen = () => steps ?? { first: 1, last: Math.max(curve?.total ?? 1, 1) }

    /** @param {Steps | null} wanted */
    function see(wanted) {
        const total = curve?.total ?? 0
        if (wanted) {
            const length = Math.min(Math.max(Math.round(wanted.last - wanted.first), FEWEST), total - 1)
            const start = Math.min(Math.max(Math.round(wanted.first), 1), total - length)
            steps = length >= total - 1 ? null : { first: start, last: start + length }
        } else {
            steps = null
        }
        redraw()
        ask()
    }

    /**
     * @param {number} factor
     * @param {number} [at] What stays where it is, as a fraction of the width.
     */
    function zoom(factor, at = 0.5) {
        const { first, last } = seen()
        const fixed = first + (last - first) * at
        see({ first: fixed - (fixed - first) * factor, last: fixed + (last - fixed) * factor })
    }

    /** @param {number} share Of what is seen. */
    function move(share) {
        const { first, last } = seen()
        const by = (last - first) * share
        if (steps) see({ first: first + by, last: last + by })
    }

    /** @param {PointerEvent | MouseEvent} event */
    const across = (event) => {
        const { left, width } = picture.getBoundingClientRect()
        return (event.clientX - left) / width
    }

    let from = 0
    whenDragged(
        plot,
        (event) => {
            plot.focus()
            from = across(event)
        },
        (event) => {
            const to = across(event)
            move(from - to)
            from = to
        },
    )
    plot.addEventListener('pointermove', (event) => tell(across(event)))
    plot.addEventListener('pointerleave', () => tell(null))
    plot.addEventListener('dblclick', () => see(null))
    plot.addEventListener(
        'wheel',
        (event) => {
            if (document.activeElement !== plot) return // It is the canvas that is zoomed.
            event.preventDefault()
            event.stopPropagation()
            zoom(event.deltaY < 0 ? ZOOM : 1 / ZOOM, across(event))
        },
        { passive: false },
    )
    whenKey(plot, {
        '+': () => zoom(ZOOM),
        '-': () => zoom(1 / ZOOM),
        0: () => see(null),
        l: () => log.click(),
        ArrowLeft: () => move(-0.2),
        ArrowRight: () => move(0.2),
    })

    /**
     * Say what the loss is of a step, or of the last one.
     *
     * @param {number | null} share Where it is, as a fraction of the width.
     */
    function tell(share) {
        if (!curve?.total) return
        const { first, last } = seen()
        const wanted = share === null ? last : first + (last - first) * share
        const after = curve.steps.findIndex((step) => step >= wanted)
        const number = after < 0 ? curve.steps.length - 1 : after
        if (number < 0) return
        const values = { step: inDigits(curve.steps[number]), loss: inWords(curve.losses[number]) }
        title.textContent = say('loss_at', { ...values, mean: inWords(curve.means[number]) })
        plot.setAttribute('aria-label', title.textContent)
    }

    function redraw() {
        const isLog = setting(LOG_SCALE)
        log.setAttribute('aria-pressed', String(isLog))
        for (const button of buttons) button.disabled = !curve?.total
        for (const part of [first, last]) part.hidden = !curve?.total
        const ends = seen()
        first.textContent = inDigits(ends.first)
        last.textContent = inDigits(ends.last)
        if (!curve?.total || curve.low === null || curve.high === null) return
        const scale = isLog ? (/** @type {number} */ loss) => Math.log(Math.max(loss, Number.MIN_VALUE)) : Number
        const [bottom, top] = [scale(curve.low), scale(curve.high)]
        const height = top - bottom || 1
        const x = (/** @type {number} */ step) => (step - ends.first) / (ends.last - ends.first || 1)
        const y = (/** @type {number} */ loss) =>
            Math.min(Math.max(1 - MARGIN - ((scale(loss) - bottom) / height) * (1 - 2 * MARGIN), 0), 1)
        single.setAttribute('d', line(curve.steps, curve.losses, x, y))
        mean.setAttribute('d', line(curve.steps, curve.means, x, y))
        redrawGap(ends, x)
        high.textContent = inWords(curve.high)
        low.textContent = inWords(curve.low)
        tell(null)
    }

    /**
     * The gap has a scale of its own, from 0 to the largest.
     *
     * @param {Steps} ends
     * @param {(step: number) => number} x
     */
    function redrawGap(ends, x) {
        const largest = Math.max(...validations.map((validation) => validation.gap)) || 1
        const y = (/** @type {number} */ gap) => 1 - MARGIN - (Math.max(gap, 0) / largest) * (1 - 2 * MARGIN)
        const seen = validations.filter(({ step }) => step >= ends.first && step <= ends.last)
        gap.setAttribute('d', line(seen.map(({ step }) => step), seen.map((validation) => validation.gap), x, y))
        const newest = seen.at(-1)
        const values = newest && { gap: inWords(newest.gap), error: inWords(newest.error), step: inDigits(newest.step) }
        gapTitle.textContent = values ? say('gap_at', values) : ''
    }

    return {
        element,
        redraw,
        get steps() {
            return steps
        },
        /**
         * @param {Curve | null} losses null: there are none.
         * @param {Validation[]} measured In the order of their steps.
         * @param {string} [text] Why there are none.
         */
        show(losses, measured, text = '') {
            curve = losses
            validations = measured
            if (steps && curve && steps.last > curve.total) steps = null
            for (const part of [single, mean, gap]) part.setAttribute('d', '')
            for (const part of [high, low, title, gapTitle]) part.textContent = ''
            title.textContent = text
            redraw()
        },
    }
}

/**
 * @param {number[]} steps
 * @param {(number | null)[]} losses
 * @param {(step: number) => number} x
 * @param {(loss: number) => number} y
 */
function line(steps, losses, x, y) {
    let path = ''
    let isBroken = true
    losses.forEach((loss, number) => {
        if (loss !== null) path += `${isBroken ? 'M' : 'L'}${x(steps[number]).toFixed(4)} ${y(loss).toFixed(4)}`
        isBroken = loss === null
    })
    return path
}

/** @param {number | null} loss */
const inWords = (loss) => (loss === null ? 'NaN' : loss.toPrecision(4))
