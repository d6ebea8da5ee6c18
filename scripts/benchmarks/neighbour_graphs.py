"""The graphs of the neighbours' bench: for each public pack, the nodes that are tried beside Apply DreamCache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harness.comfyui_server import ComfyUIServer, Prompt

# An output of a node, as prompts in API format name it.
Link = list[Any]


@dataclass
class Scene:
    """A prompt under construction: the demo model, two prompts and a reference.

    `definitions`: of all nodes, from the server. `width`, `height`: of the picture, in pixels. `batch`: of latents.
    """

    server: ComfyUIServer
    definitions: dict[str, Any]
    width: int = 128
    height: int = 128
    batch: int = 1
    prompt: Prompt = field(default_factory=dict)
    run: int = 0

    def __post_init__(self) -> None:
        demo = self.add("DreamCacheDemoModel")
        self.model, self.clip, self.vae, self.adapter, self.image, self.mask = ([demo[0], n] for n in range(6))
        self.positive = self.add("CLIPTextEncode", clip=self.clip, text="a turtle on a snowy field")
        self.negative = self.add("CLIPTextEncode", clip=self.clip, text="")
        self.reference = self.add("DreamCacheEncodeReference", clip=self.clip, mask=self.mask)
        self.latent = self.add("EmptyLatentImage", width=self.width, height=self.height, batch_size=self.batch)

    def add(self, class_type: str, **inputs: Any) -> Link:
        """Add a node; its other inputs have their defaults, or what this scene has of their type."""
        given: dict[str, Any] = {}
        types = {"VAE": "vae", "CLIP": "clip", "IMAGE": "image", "MASK": "mask", "LATENT": "latent", "MODEL": "model"}
        for name, (kind, *options) in self.definitions[class_type]["input"].get("required", {}).items():
            if kind == "CONDITIONING":
                given[name] = self.negative if "neg" in name else self.positive
            elif isinstance(kind, str) and kind in types:
                given[name] = getattr(self, types[kind])
            elif options and "default" in options[0]:
                given[name] = options[0]["default"]
            elif choices := kind if isinstance(kind, list) else options[0].get("options") if options else None:
                given[name] = choices[0]
        # No input of the node's, but part of what the server knows its results by: it must not answer from memory.
        extra = {"run": self.run} if "sampl" in class_type.lower() else {}
        number = str(len(self.prompt) + 1)
        self.prompt[number] = {"class_type": class_type, "inputs": {**given, **extra, **inputs}}
        return [number, 0]

    def sampler(self, class_type: str, model: Link, **changes: Any) -> Link:
        """A sampler with a KSampler's inputs. Returns its latents."""
        outputs = self.definitions[class_type]["output"]
        settings = {"seed": 5, "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        return [self.add(class_type, model=model, **{**settings, **changes})[0], outputs.index("LATENT")]

    def guided(self, guider: Link, model: Link) -> Link:
        """SamplerCustomAdvanced with a guider."""
        sigmas = self.add("BasicScheduler", model=model, scheduler="normal", steps=3, denoise=1.0)
        how = {"noise": self.add("RandomNoise", noise_seed=5)}
        how["sampler"] = self.add("KSamplerSelect", sampler_name="euler")
        return self.add("SamplerCustomAdvanced", guider=guider, sigmas=sigmas, latent_image=self.latent, **how)


LOADS_ONLY = "none: it needs weights that the bench lacks"

Sample = Callable[[Scene, Link], Link]


@dataclass(frozen=True)
class Case:
    """One graph of a neighbour.

    `pack`: its folder's name. `title`: what is tried; LOADS_ONLY: nothing. `patch`: model → model. `sample`: model →
    latents, in place of KSampler. `prompts`: changes the scene's prompts. `scene`: settings of the scene. `tiles`: a
    region is measured.
    """

    pack: str
    title: str
    patch: Callable[[Scene, Link], Link] | None = None
    sample: Sample | None = None
    prompts: Callable[[Scene], None] = lambda scene: None
    scene: dict[str, int] = field(default_factory=dict)
    tiles: bool = False


def node(class_type: str, **inputs: Any) -> Callable[[Scene, Link], Link]:
    def add(scene: Scene, model: Link) -> Link:
        outputs = scene.definitions[class_type]["output"]
        return [scene.add(class_type, model=model, **inputs)[0], outputs.index("MODEL")]

    return add


def sampler(class_type: str, **inputs: Any) -> Sample:
    return lambda scene, model: scene.sampler(class_type, model, **inputs)


def guider(class_type: str, **inputs: Any) -> Sample:
    def add(scene: Scene, model: Link) -> Link:
        return scene.guided(scene.add(class_type, model=model, **inputs), model)

    return add


def evolved(scene: Scene, model: Link) -> Link:
    context = scene.add("ADE_StandardStaticContextOptions", context_length=4, context_overlap=2)
    return scene.add("ADE_UseEvolvedSampling", model=model, beta_schedule="autoselect", context_options=context)


def reference_controlnet(scene: Scene) -> None:
    image = scene.add("ACN_ReferencePreprocessor", latent_size=scene.latent)
    net = scene.add("ACN_ReferenceControlNet", reference_type="reference_attn")
    prompts = {"positive": scene.positive, "negative": scene.negative, "control_net": net, "image": image}
    applied = scene.add("ACN_AdvancedControlNetApply_v2", **prompts)
    scene.positive, scene.negative = applied, [applied[0], 1]


def couple(scene: Scene) -> None:
    text = "a turtle COUPLE MASK(0 0.5) a dog COUPLE MASK(0.5 1) a cat"
    scene.positive = scene.add("PCTextEncode", clip=scene.clip, text=text)


def advanced_text(scene: Scene) -> None:
    scene.positive = scene.add("BNK_CLIPTextEncodeAdvanced", clip=scene.clip, text="a (turtle:1.4) on a field")


def upscale(scene: Scene, model: Link) -> Link:
    large = scene.add("ImageScale", image=scene.image, width=256, height=128, upscale_method="area", crop="disabled")
    sizes = {"tile_width": 128, "tile_height": 128, "tile_padding": 0, "mask_blur": 0}
    settings = {"steps": 3, "cfg": 4.0, "denoise": 0.8, "seed": 5, "run": scene.run}
    done = scene.add("UltimateSDUpscaleNoUpscale", upscaled_image=large, model=model, **sizes, **settings)
    return scene.add("VAEEncode", pixels=done)


def attention_couple(scene: Scene, model: Link) -> Link:
    masked = scene.add("ConditioningSetMask", conditioning=scene.positive, mask=scene.mask, strength=1.0)
    whole = scene.add("SolidMask", value=1.0, width=128, height=128)
    everywhere = scene.add("ConditioningSetMask", conditioning=scene.positive, mask=whole, strength=1.0)
    both = scene.add("ConditioningCombine", conditioning_1=masked, conditioning_2=everywhere)
    coupled = scene.add("Attention couple", model=model, positive=both, negative=everywhere, mode="Attention")
    scene.positive, scene.negative = [coupled[0], 1], [coupled[0], 2]
    return coupled


WIDE = {"width": 512, "height": 128}


def tiled_diffusion(method: str) -> Case:
    tiles = {"tile_width": 256, "tile_height": 128, "tile_overlap": 128, "tile_batch_size": 4}
    patch = node("TiledDiffusion", method=method, **tiles)
    return Case("ComfyUI-TiledDiffusion", method, patch, scene=WIDE, tiles=True)


def sliding_windows() -> Case:
    patch = node("SlidingWindowGuidanceAdvanced", tile_width=64, tile_height=64, tile_overlap=32)
    return Case("sd-perturbed-attention", "sliding windows", patch, scene={"width": 256, "height": 256})


EFFICIENT = sampler("KSampler (Efficient)", preview_method="none", vae_decode="false")
TILED_SAMPLER = sampler("BNK_TiledKSampler", tile_width=256, tile_height=256)

CASES = (
    Case("Comfy-WaveSpeed", "First block cache", node("ApplyFBCacheOnModel", residual_diff_threshold=0.3)),
    Case("ComfyUI-Advanced-ControlNet", "reference-only ControlNet", prompts=reference_controlnet),
    Case("ComfyUI-AnimateDiff-Evolved", "context windows of a batch", evolved, scene={"batch": 6}),
    Case("ComfyUI-AutomaticCFG", "Automatic CFG", node("Automatic CFG")),
    Case("ComfyUI-AutomaticCFG", "Advanced", node("Automatic CFG - Advanced")),
    Case("ComfyUI-AutomaticCFG", "Warp Drive", node("Automatic CFG - Warp Drive")),
    Case("ComfyUI-Easy-Use", "StyleAligned", node("easy styleAlignedBatchAlign"), scene={"batch": 2}),
    Case("ComfyUI-Impact-Pack", "KSampler pipes", sample=sampler("ImpactKSamplerBasicPipe")),
    Case("ComfyUI-Inspire-Pack", "KSampler", sample=sampler("KSampler //Inspire")),
    Case("ComfyUI-Inspire-Pack", "RegionalCFG", node("RegionalCFG //Inspire")),
    Case("ComfyUI-KJNodes", "CFGZeroStar", node("CFGZeroStarAndInit")),
    Case("ComfyUI-KJNodes", "ScheduledCFGGuidance", sample=guider("ScheduledCFGGuidance")),
    tiled_diffusion("MultiDiffusion"),
    tiled_diffusion("Mixture of Diffusers"),
    tiled_diffusion("SpotDiffusion"),
    Case("ComfyUI-layerdiffuse", LOADS_ONLY),
    Case("ComfyUI-ppm", "CFG++ and guidance", node("CFGLimiterGuider")),
    Case("ComfyUI-GGUF", LOADS_ONLY),
    Case("ComfyUI_ADV_CLIP_emb", "weighted prompt", prompts=advanced_text),
    Case("ComfyUI_IPAdapter_plus", LOADS_ONLY),
    Case("ComfyUI_TiledKSampler", "Tiled KSampler", sample=TILED_SAMPLER, scene=WIDE),
    Case("ComfyUI_UltimateSDUpscale", "No Upscale", sample=upscale),
    Case("ComfyUI_smZNodes", "settings", node("smZ Settings")),
    Case("Skimmed_CFG", "Skimmed CFG", node("Skimmed CFG")),
    Case("Skimmed_CFG", "Difference CFG", node("Skimmed CFG - Difference CFG")),
    Case("attention-couple-ComfyUI", "Attention couple", attention_couple),
    Case("cgem156-ComfyUI", "ScaleCrafter", node("ScaleCrafter|cgem156")),
    Case("cgem156-ComfyUI", "Reference", node("ReferenceApply|cgem156"), scene={"batch": 2}),
    Case("comfyui-prompt-control", "attention couple", prompts=couple),
    Case("efficiency-nodes-comfyui", "KSampler (Efficient)", sample=EFFICIENT),
    Case("sd-dynamic-thresholding", "Dynamic thresholding", node("DynamicThresholdingFull")),
    Case("sd-perturbed-attention", "PAG", node("PerturbedAttention")),
    Case("sd-perturbed-attention", "momentum", node("MomentumGuidance")),
    Case("sd-perturbed-attention", "token perturbation", node("TokenPerturbationGuidance")),
    sliding_windows(),
    Case("sd-perturbed-attention", "smoothed energy", node("SmoothedEnergyGuidanceAdvanced")),
)
