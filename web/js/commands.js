/** The commands: open the demo, and build the basic workflow in the graph that is open. */

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { addInOneStep } from './nodes.js'
import { reason } from './server.js'
import { translateTemplate } from './template_texts.js'
import { say } from './words.js'

// The pack is whatever folder of custom_nodes it lies in: /extensions/<folder>/js/commands.js.
const PACK = new URL(import.meta.url).pathname.split('/').at(-3)

export const COMMANDS = [
    {
        id: 'DreamCache.OpenDemo',
        label: 'DreamCache: open the demo',
        icon: 'pi pi-play',
        function: openDemo,
    },
    {
        id: 'DreamCache.BuildBasicGraph',
        label: 'DreamCache: build the basic graph here',
        icon: 'pi pi-sitemap',
        function: buildBasicGraph,
    },
]

/** Open the template that needs no file, in a tab of its own. */
async function openDemo() {
    const workflow = await template('dreamcache_demo')
    if (workflow) await app.loadGraphData(workflow, true, true, 'DreamCache')
}

/** Add the nodes of the template in the middle of what is seen, and show them whole. */
async function buildBasicGraph() {
    const workflow = await template('dreamcache_basic')
    if (!workflow) return
    translateTemplate(workflow)
    app.canvas.selectItems(await addInOneStep(() => add(workflow)))
    await app.extensionManager.command.execute('Comfy.Canvas.FitView')
}

/**
 * @param {string} name The lasting one.
 * @returns A workflow, or null if it isn't there, which is said.
 */
async function template(name) {
    try {
        const response = await api.fetchApi(`/workflow_templates/${PACK}/${name}.json`)
        if (!response.ok) throw new Error(response.statusText)
        return await response.json()
    } catch (error) {
        app.extensionManager.toast.add({ severity: 'error', summary: say('not_opened'), detail: reason(error) })
        return null
    }
}

/**
 * @param {any} workflow In the front end's format.
 * @returns What was added.
 */
function add(workflow) {
    const graph = app.canvas.graph ?? app.graph
    const shift = toMiddle(workflow.groups.map((/** @type {any} */ group) => group.bounding))
    const added = []
    for (const data of workflow.groups) {
        const group = new LiteGraph.LGraphGroup(data.title)
        const [x, y, ...size] = data.bounding
        group.configure({ ...data, id: group.id, bounding: [x + shift[0], y + shift[1], ...size] })
        graph.add(group)
        added.push(group)
    }
    const nodes = new Map()
    for (const data of workflow.nodes) {
        const node = LiteGraph.createNode(data.type)
        if (!node) continue
        graph.add(node)
        const inputs = data.inputs.map((/** @type {any} */ input) => ({ ...input, link: null }))
        const outputs = data.outputs.map((/** @type {any} */ output) => ({ ...output, links: null }))
        const pos = [data.pos[0] + shift[0], data.pos[1] + shift[1]]
        node.configure({ ...data, id: node.id, inputs, outputs, pos })
        nodes.set(data.id, node)
        added.push(node)
    }
    for (const [, from, output, to, input] of workflow.links) nodes.get(from)?.connect(output, nodes.get(to), input)
    return added
}

/**
 * How far boxes (x, y, width, height) are from the middle of what is seen.
 *
 * @param {[number, number, number, number][]} boxes
 */
function toMiddle(boxes) {
    const [x, y, width, height] = app.canvas.visible_area
    return [[x + width / 2, 0], [y + height / 2, 1]].map(([middle, axis]) => {
        const start = Math.min(...boxes.map((box) => box[axis]))
        const end = Math.max(...boxes.map((box) => box[axis] + box[axis + 2]))
        return Math.round(middle - (start + end) / 2)
    })
}
