/** DreamCache Strengths is drawn: bars for the layers, and the curve over the sampling. The widgets have the numbers. */

import { addElement, addStyle, draw, make, makeButton, whenDragged, whenKey } from './element.js'
import { beginChange, change, endChange, set, whenSet, widgetOf } from './nodes.js'
import { curve as askForCurve, reason } from './server.js'
import { say } from './words.js'

export const STRENGTHS = 'DreamCacheStrengths'

const GROUPS = ['bottleneck', 'coarse', 'medium', 'fine']
/** What `over_sampling` is where `values` has the curve. */
const LIST = 'list'
/** How many points a curve gets that had none of its own. */
const POINTS = 5
const MOST_POINTS = 33
const STEP = 0.05
const HEIGHT = 176
const MILLISECONDS_BEFORE_ASKING = 100
/** Name below a bar, in letters, that isn't narrowed. */
const LONGEST = 10
/** Of the drawing, in its own units: pixels of a fresh node. */
const [TOP, TALL, LEFT, BAR, CURVE_LEFT, CURVE_WIDE] = [7, 110, 16, 60, 280, 116]
const VIEW_BOX = '0 0 404 136'
/** Of a text's foot below what it names. */
const BELOW = 15

addStyle(`
    .dreamcache-strengths { display: flex; flex-direction: column; padding: 2px 4px; }
    .dreamcache-strengths svg { flex: 1; min-height: 0; width: 100%; touch-action: none; }
    .dreamcache-strengths .frame { fill: none; stroke: var(--border-color); }
    .dreamcache-strengths .one { stroke: var(--border-color); stroke-dasharray: 3 3; }
    .dreamcache-strengths .bar { fill: #8f7cc9; cursor: ns-resize; }
    .dreamcache-strengths .hand { fill: transparent; cursor: ns-resize; }
    .dreamcache-strengths .line { fill: none; stroke: #8f7cc9; stroke-width: 2; }
    .dreamcache-strengths circle { fill: var(--comfy-input-bg); stroke: #8f7cc9; stroke-width: 2; cursor: ns-resize; }
    .dreamcache-strengths .unused { opacity: 0.35; }
    .dreamcache-strengths text { fill: var(--input-text); font-size: 12px; text-anchor: middle; }
    .dreamcache-strengths .axis { text-anchor: end; }`)

/**
 * Add the editor to a node that was just made.
 *
 * @param {GraphNode} node
 */
export function addStrengthsEditor(node) {
    const groups = GROUPS.flatMap((name) => widgetOf(node, name) ?? [])
    const overSampling = widgetOf(node, 'over_sampling')
    const values = widgetOf(node, 'values')
    if (groups.length < GROUPS.length || !overSampling || !values) return
    const most = Number(groups[0].options.max)

    const element = make('div', 'dreamcache-strengths')
    const picture = draw('svg', { viewBox: VIEW_BOX })
    const text = make('div')
    text.role = 'status'
    const tools = make('div', 'dreamcache-tools')
    const fewer = makeButton('−', say('fewer_points'), () => resample(points().length - 1))
    const more = makeButton('+', say('more_points'), () => resample(points().length + 1))
    tools.append(fewer, more, text)
    element.append(picture, tools)

    /** @type {number[]} The curve, as the server reads it. */
    let curve = []
    let latest = 0

    /** The points that one can drag: those of the list, or some of a curve that has another form. */
    const points = () =>
        overSampling.value === LIST ? curve : Array.from({ length: POINTS }, (_, number) => at(number / (POINTS - 1)))

    /** @param {number} progress */
    function at(progress) {
        const place = progress * (curve.length - 1)
        const [before, share] = [Math.floor(place), place % 1]
        return curve[before] * (1 - share) + (curve[before + 1] ?? curve[before]) * share
    }

    /** @param {number} value */
    const limited = (value) => Math.min(Math.max(Number(value.toFixed(2)), 0), most)

    /** @param {number[]} wanted */
    function setCurve(wanted) {
        curve = wanted.map(limited)
        set(values ?? groups[0], curve.join(', '))
        if (overSampling && overSampling.value !== LIST) set(overSampling, LIST)
        redraw()
    }

    /** Show the list only where the curve is made of it. */
    function showValues() {
        if (!values) return
        values.hidden = overSampling?.value !== LIST
        Object.assign(values.options, { hidden: values.hidden })
    }

    /** @param {number} count */
    function resample(count) {
        if (!curve.length || count < 2 || count > MOST_POINTS) return
        change(() => setCurve(Array.from({ length: count }, (_, number) => at(number / (count - 1)))))
    }

    async function update() {
        const number = ++latest
        showValues()
        redraw()
        await new Promise((resolve) => setTimeout(resolve, MILLISECONDS_BEFORE_ASKING))
        if (number !== latest) return // It is being dragged.
        try {
            const answer = await askForCurve(String(overSampling?.value), String(values?.value))
            if (number !== latest) return
            curve = answer.curve ?? curve
            text.textContent = answer.problem ?? ''
        } catch (error) {
            if (number !== latest) return
            text.textContent = reason(error)
        }
        text.title = text.textContent
        text.classList.toggle('dreamcache-problem', Boolean(text.textContent))
        redraw()
    }

    const y = (/** @type {number} */ value) => TOP + TALL * (1 - value / most)
    const x = (/** @type {number} */ progress) => CURVE_LEFT + CURVE_WIDE * progress
    const one = y(1)
    const barsWide = BAR * groups.length
    const line = draw('path', { class: 'line' })
    const handles = draw('g', {})
    /**
     * @param {string} words
     * @param {Record<string, string | number>} place
     */
    const label = (words, place) => {
        const element = draw('text', place)
        element.textContent = words
        return element
    }
    const axes = [LEFT, CURVE_LEFT].flatMap((left) =>
        [0, 1, most].map((value) => label(String(value), { class: 'axis', x: left - 4, y: y(value) + 4 })),
    )
    const under = TOP + TALL + BELOW
    picture.append(
        ...axes,
        label(say('sampling_start'), { x: CURVE_LEFT, y: under, style: 'text-anchor: start' }),
        label(say('sampling_end'), { x: CURVE_LEFT + CURVE_WIDE, y: under, style: 'text-anchor: end' }),
        draw('rect', { class: 'frame', x: LEFT, y: TOP, width: barsWide, height: TALL }),
        draw('rect', { class: 'frame', x: CURVE_LEFT, y: TOP, width: CURVE_WIDE, height: TALL }),
        draw('path', { class: 'one', d: `M${LEFT} ${one}h${barsWide}M${CURVE_LEFT} ${one}h${CURVE_WIDE}` }),
        line,
    )
    const bars = groups.map((widget, number) => {
        const shown = widget.label ?? widget.name
        const place = { x: LEFT + number * BAR + BAR / 4, width: BAR / 2 }
        const bar = draw('rect', { class: 'bar', ...place })
        const hand = draw('rect', { class: 'hand', ...place, y: TOP, height: TALL })
        const name = label(shown, { x: place.x + BAR / 4, y: under })
        if (shown.length > LONGEST) name.setAttribute('textLength', String(BAR - 2))
        name.setAttribute('lengthAdjust', 'spacingAndGlyphs')
        const put = (/** @type {number} */ value) => isLinked(widget.name) || set(widget, limited(value))
        makeSlider(hand, shown, () => Number(widget.value), put)
        picture.append(bar, hand, name)
        return { bar, hand, shown, widget }
    })
    picture.append(handles) // After the bars, as they are seen: so they come with Tab.

    /** @param {string} name */
    const isLinked = (name) => node.inputs.some((input) => input.name === name && input.link != null)

    /**
     * Let something be dragged up and down, and moved with the keyboard.
     *
     * @param {SVGElement} handle
     * @param {string} name
     * @param {() => number} get
     * @param {(value: number) => unknown} put
     */
    function makeSlider(handle, name, get, put) {
        handle.tabIndex = 0
        handle.role = 'slider'
        handle.ariaLabel = name
        handle.setAttribute('aria-valuemin', '0')
        handle.setAttribute('aria-valuemax', String(most))
        /** @param {PointerEvent} event */
        const follow = (event) => {
            const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM()?.inverse())
            put(Math.round(((1 - (point.y - TOP) / TALL) * most) / STEP) * STEP)
        }
        whenDragged(
            handle,
            (event) => {
                handle.focus()
                event.stopPropagation()
                beginChange()
                follow(event)
            },
            follow,
            endChange,
        )
        /** @param {number} by */
        const step = (by) => () => change(() => put(get() + by))
        whenKey(handle, {
            ArrowUp: step(STEP),
            ArrowRight: step(STEP),
            ArrowDown: step(-STEP),
            ArrowLeft: step(-STEP),
            PageUp: step(5 * STEP),
            PageDown: step(-5 * STEP),
            Home: () => change(() => put(0)),
            End: () => change(() => put(most)),
        })
    }

    function redraw() {
        for (const { bar, hand, shown, widget } of bars) {
            const value = Number(widget.value)
            // What comes in isn't known before the run; the widget's own value isn't used.
            const linked = isLinked(widget.name)
            bar.classList.toggle('unused', linked)
            hand.setAttribute('aria-disabled', String(linked))
            hand.setAttribute('aria-label', linked ? say('linked', { name: shown }) : shown)
            bar.setAttribute('y', String(y(value)))
            bar.setAttribute('height', String(TALL - (y(value) - TOP)))
            hand.setAttribute('aria-valuenow', String(value))
        }
        if (!curve.length) return
        for (const part of [line, handles]) part.classList.toggle('unused', isLinked('curve'))
        const shown = curve.length > 1 ? curve : [curve[0], curve[0]]
        line.setAttribute('d', `M${shown.map((value, number) => `${x(number / (shown.length - 1))} ${y(value)}`).join('L')}`)
        const places = points()
        while (handles.childElementCount > places.length) handles.lastElementChild?.remove()
        while (handles.childElementCount < places.length) addHandle(handles.childElementCount)
        places.forEach((value, number) => {
            const handle = handles.children[number]
            const progress = places.length > 1 ? number / (places.length - 1) : 0
            handle.setAttribute('cx', String(x(progress)))
            handle.setAttribute('cy', String(y(value)))
            handle.setAttribute('aria-valuenow', String(limited(value)))
            handle.setAttribute('aria-label', say('point', { percent: Math.round(100 * progress) }))
        })
    }

    /** @param {number} number */
    function addHandle(number) {
        const handle = draw('circle', { r: 4 })
        const put = (/** @type {number} */ value) => setCurve(points().map((old, one) => (one === number ? value : old)))
        makeSlider(handle, '', () => points()[number], put)
        handles.append(handle)
    }

    addElement(node, 'dreamcache_strengths', element, HEIGHT)
    whenSet(node, [...groups, overSampling, values], update)
    const { onConnectionsChange } = node
    node.onConnectionsChange = function (...args) {
        onConnectionsChange?.apply(this, args)
        redraw()
    }
    update()
}
