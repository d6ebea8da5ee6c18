/** What ComfyUI's front end gives to its extensions, for type checkers alone: see jsconfig.json. */

type ComfyApp = import('@comfyorg/comfyui-frontend-types').ComfyApp
type GraphNode = NonNullable<ReturnType<ComfyApp['graph']['nodes'][number]['getInputNode']>>
type GraphWidget = NonNullable<GraphNode['widgets']>[number]
/** What the published types lack. */
type WithDOMWidgets = {
    addDOMWidget(name: string, type: string, element: HTMLElement, options: object): GraphWidget
}

declare const LGraphCanvas: { link_type_colors: Record<string, string> }
declare const LiteGraph: {
    createNode(type: string): GraphNode | null
    LGraphGroup: new (title: string) => ComfyApp['graph']['groups'][number]
}

/** Only of what ComfyUI's own extensions use, too. */
declare const comfyAPI: { utils: { applyTextReplacements(app: ComfyApp, text: string): string } }

declare module '*/scripts/app.js' {
    export const app: ComfyApp
}

declare module '*/scripts/api.js' {
    export const api: import('@comfyorg/comfyui-frontend-types').ComfyApi
}
