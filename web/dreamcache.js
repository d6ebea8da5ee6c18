/** The pack in ComfyUI's front end. Each part of it is a module of `js/`. */

import { app } from '../../scripts/app.js'
import { adapterLoader } from './js/adapter_loader.js'
import { COMMANDS } from './js/commands.js'
import { connectDropped, forgetDrop, watchDrops } from './js/drop.js'
import { ENCODE, showEncoded } from './js/encode_reference.js'
import { replaceInName } from './js/file_name.js'
import { checkFitAgain, watchFit } from './js/fit.js'
import { clearProgressText } from './js/progress_text.js'
import { referenceLoader } from './js/reference_loader.js'
import { EDITORS, SETTINGS, setting } from './js/settings.js'
import { makeRoomForSheet } from './js/sheet.js'
import { widen } from './js/sizes.js'
import { paintSlots } from './js/slot_colours.js'
import { addStrengthsEditor, STRENGTHS } from './js/strengths_editor.js'
import { translateTemplate } from './js/template_texts.js'
import { showTraining, TRAIN, watchTraining } from './js/training.js'
import { labelValues } from './js/value_labels.js'
import { loadWords } from './js/words.js'

const describeFiles = () => Promise.all([adapterLoader.describe(), referenceLoader.describe()])

app.registerExtension({
    name: 'DreamCache',
    commands: COMMANDS,
    menuCommands: [{ path: ['DreamCache'], commands: COMMANDS.map(({ id }) => id) }],
    settings: SETTINGS,
    async init() {
        await loadWords()
    },
    async setup() {
        paintSlots()
        watchFit()
        watchDrops()
        watchTraining()
        clearProgressText()
        await describeFiles()
    },
    // R was pressed.
    async refreshComboInNodes() {
        checkFitAgain()
        await describeFiles()
    },
    beforeConfigureGraph(workflow) {
        forgetDrop()
        translateTemplate(workflow)
    },
    nodeCreated(node) {
        const type = String(node.comfyClass)
        replaceInName(node)
        if (adapterLoader.types.includes(type)) adapterLoader.show(node)
        else if (referenceLoader.types.includes(type)) referenceLoader.show(node)
        else if (type === TRAIN) showTraining(node)
        else if (type === STRENGTHS && setting(EDITORS)) addStrengthsEditor(node)
        else if (type === ENCODE) showEncoded(node)
        else connectDropped(node)
        if (type.includes('DreamCache')) {
            widen(node)
            labelValues(node)
        }
        makeRoomForSheet(node)
    },
})
