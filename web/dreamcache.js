/** The pack in ComfyUI's front end. Each part of it is a module of `js/`. */

import { app } from '../../scripts/app.js'
import { ADAPTER_LOADERS, describeAdapters, showAdapter } from './js/adapter_loader.js'
import { buildBasicGraph } from './js/basic_graph.js'
import { checkFitAgain, watchFit } from './js/fit.js'
import { paintSlots } from './js/slot_colours.js'
import { loadWords } from './js/words.js'

app.registerExtension({
    name: 'DreamCache',
    commands: [
        {
            id: 'DreamCache.BuildBasicGraph',
            label: 'DreamCache: build the basic graph here',
            icon: 'pi pi-sitemap',
            function: buildBasicGraph,
        },
    ],
    async init() {
        await loadWords()
    },
    async setup() {
        paintSlots()
        watchFit()
        await describeAdapters()
    },
    // R was pressed.
    async refreshComboInNodes() {
        checkFitAgain()
        await describeAdapters()
    },
    nodeCreated(node) {
        if (ADAPTER_LOADERS.includes(String(node.comfyClass))) showAdapter(node)
    },
})
