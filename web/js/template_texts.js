/** A template's titles and notes, in the language of the front end. Its prompts stay: models read English. */

import { texts } from './words.js'

/** In `extra` of a template: its lasting name. */
const MARK = 'dreamcache_template'

/**
 * Translate a workflow if it is a template that is opened. What a user saves has no mark, and is left as it is.
 *
 * @param {any} workflow In the front end's format.
 */
export function translateTemplate(workflow) {
    const name = workflow.extra?.[MARK]
    if (!name) return
    delete workflow.extra[MARK]
    const { titles = {}, notes = {} } = texts('dreamcacheTemplates')
    for (const titled of [...workflow.groups, ...workflow.nodes]) {
        if (titled.title in titles) titled.title = titles[titled.title]
    }
    for (const node of workflow.nodes) {
        if (node.type === 'MarkdownNote' && name in notes) node.widgets_values = [notes[name]]
    }
}
