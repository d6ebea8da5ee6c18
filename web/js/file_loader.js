/** A loader says what the file that is chosen on it is, and its list which files can't be used. */

import { isListed, nodesOfType, whenSet, widgetOf } from './nodes.js'
import { addNote } from './note.js'
import { reason } from './server.js'
import { valueLabel } from './value_labels.js'
import { say } from './words.js'

/** @typedef {{ problem: string | null }} Described */

/**
 * @template {Described} Description
 * @typedef {object} Kind A kind of files, and the nodes that load them.
 * @property {string[]} types Of the nodes.
 * @property {string} widgetName Of the list on them.
 * @property {number} [height] Of what is said.
 * @property {() => Promise<Record<string, Description>>} all Asks the server for all of them.
 * @property {(name: string) => Promise<Description>} one
 * @property {() => string} none What the list says without a file.
 * @property {() => string} put What to do then.
 * @property {(name: string) => string} absent What to do where the chosen file isn't there.
 * @property {(description: Description) => string} facts
 * @property {(name: string, description: Description) => string[]} [pictures] Addresses.
 */

/**
 * @template {Described} Description
 * @param {Kind<Description>} kind
 */
export function fileLoader(kind) {
    /** @type {Record<string, Description>} */
    let described = {}

    /** @type {WeakMap<GraphNode, () => Promise<void>>} */
    const updates = new WeakMap()

    /** @param {string | null} [name] */
    const label = (name) => {
        if (!name) return kind.none()
        const problem = described[name]?.problem
        return problem ? `⚠ ${name}: ${problem}` : valueLabel(name)
    }

    /**
     * @param {string} name
     * @returns {Promise<Parameters<ReturnType<typeof addNote>['show']>>}
     */
    const inWords = async (name) => {
        try {
            const description = await kind.one(name)
            if (description.problem) return [description.problem, true]
            return [kind.facts(description), false, kind.pictures?.(name, description)]
        } catch (error) {
            return [reason(error), true]
        }
    }

    return {
        types: kind.types,

        /** Ask the server what all files are, for the lists, and show it. */
        async describe() {
            try {
                described = await kind.all()
            } catch {
                return // The notes say so.
            }
            for (const node of nodesOfType(...kind.types)) updates.get(node)?.()
        },

        /**
         * Add what the chosen file is to a node that was just made.
         *
         * @param {GraphNode} node
         */
        show(node) {
            const widget = widgetOf(node, kind.widgetName)
            if (!widget) return
            widget.options.getOptionLabel = label
            Object.assign(widget.options, { placeholder: kind.none() })
            const note = addNote(node, { height: kind.height })

            const update = async () => {
                const name = String(widget.value ?? '')
                if (!name) return note.show(kind.put())
                if (!isListed(widget)) return note.show(kind.absent(name), true)
                note.show(say('reading', { name }))
                const words = await inWords(name)
                if (widget.value === name) note.show(...words)
            }
            updates.set(node, update)
            whenSet(node, [widget], update)
            update()
        },
    }
}
