"""The graphs of the neighbours' bench: for each public pack, the nodes that are tried beside Apply DreamCache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
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
            elif kind == "STRING":
                given[name] = ""
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
    region is measured. `beside`: packs that it needs. `files`: writes what it loads, below the server's folder.
    `note`: for its row.
    """

    pack: str
    title: str
    patch: Callable[[Scene, Link], Link] | None = None
    sample: Sample | None = None
    prompts: Callable[[Scene], None] = lambda scene: None
    scene: dict[str, int] = field(default_factory=dict)
    tiles: bool = False
    beside: tuple[str, ...] = ()
    files: Callable[[Path], None] = lambda base: None
    note: str = ""


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


def basic_pipe(scene: Scene, model: Link) -> Link:
    settings = {"seed": 5, "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}
    pipe = scene.add("ToBasicPipe", model=model)
    return [scene.add("ImpactKSamplerBasicPipe", basic_pipe=pipe, **settings)[0], 1]


def detailer(scene: Scene, model: Link) -> Link:
    """Draw the middle of a picture anew."""
    picture = scene.add("ImageScale", image=scene.image, width=128, height=128, upscale_method="area", crop="disabled")
    black, white = (scene.add("SolidMask", value=value, width=128, height=128) for value in (0.0, 1.0))
    middle = scene.add("CropMask", mask=white, x=0, y=0, width=64, height=64)
    mask = scene.add("MaskComposite", destination=black, source=middle, x=32, y=32, operation="add")
    found = scene.add("MaskToSEGS", mask=mask)
    settings = {"guide_size": 64, "steps": 3, "cfg": 4.0, "denoise": 0.8, "seed": 5, "run": scene.run}
    done = scene.add("DetailerForEach", image=picture, segs=found, model=model, **settings)
    return scene.add("VAEEncode", pixels=done)


def smz_settings(scene: Scene, model: Link) -> Link:
    optional = scene.definitions["smZ Settings"]["input"]["optional"]
    defaults = {name: options[0].get("default", "") for name, (_, *options) in optional.items()}
    changes = {"RNG": "nv", "skip_early_cond": 0.3, "Use CFGDenoiser": True}
    return scene.add("smZ Settings", **defaults | changes | {"*": model})


GENERATED = "with generated weights"
STACKS = "by itself, it shuffles once more each time that it patches a model which is loaded with it"
# Inputs and outputs of the demo model's attentions, in the order of SD1.5's U-Net: encoder, decoder, middle.
CHANNELS = (64, 64, 64, 64, 128, 128, 128, 128, 128, 64, 64, 64, 64, 64, 64, 128)
CONTEXT = 96


def save(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Save a file of random weights."""
    generator = torch.Generator().manual_seed(1)
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    safetensors.torch.save_file(tensors, file)


EMBEDS = {"positive": 1.0, "negative": 0.0}


def ipadapter_files(base: Path) -> None:
    image, tokens = 32, 4
    shapes: dict[str, tuple[int, ...]] = {
        "image_proj.proj.weight": (tokens * CONTEXT, image),
        "image_proj.proj.bias": (tokens * CONTEXT,),
        "image_proj.norm.weight": (CONTEXT,),
        "image_proj.norm.bias": (CONTEXT,),
    }
    for number, channels in enumerate(CHANNELS):
        for kind in "kv":
            shapes[f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight"] = (channels, CONTEXT)
    save(base / "models" / "ipadapter" / "generated.safetensors", shapes)
    for name, value in EMBEDS.items():
        torch.save(torch.full((1, image), value), base / "input" / f"{name}.ipadpt")


def ipadapter(scene: Scene, model: Link) -> Link:
    adapter = scene.add("IPAdapterModelLoader")
    positive, negative = (scene.add("IPAdapterLoadEmbeds", embeds=f"{name}.ipadpt") for name in EMBEDS)
    embeds = {"pos_embed": positive, "neg_embed": negative}
    return scene.add("IPAdapterEmbeds", model=model, ipadapter=adapter, weight=3.0, **embeds)


def layerdiffuse_files(base: Path) -> None:
    rank = 256
    shapes: dict[str, tuple[int, ...]] = {}
    for number, width in enumerate(width for width in CHANNELS for _ in range(2)):
        layer, inputs = f"hookers.layers.{number}", CONTEXT if number % 2 else width
        for part, source in (("q", width), ("k", inputs), ("v", inputs), ("out", width)):
            shapes[f"{layer}.to_{part}_lora.0.down.weight"] = (rank, source)
            shapes[f"{layer}.to_{part}_lora.0.up.weight"] = (width, rank)
        for part in "inqkvo":
            shapes[f"{layer}.temporal_{part}.weight"] = (width,) if part == "n" else (width, width)
            shapes[f"{layer}.temporal_{part}.bias"] = (width,)
    save(base / "models" / "layer_model" / "layer_sd15_transparent_attn.safetensors", shapes)


def attention_couple(scene: Scene, model: Link) -> Link:
    half = scene.add("SolidMask", value=0.5, width=128, height=128)
    masked = scene.add("ConditioningSetMask", conditioning=scene.positive, mask=half, strength=1.0)
    whole = scene.add("SolidMask", value=1.0, width=128, height=128)
    everywhere = scene.add("ConditioningSetMask", conditioning=scene.positive, mask=whole, strength=1.0)
    both = scene.add("ConditioningCombine", conditioning_1=masked, conditioning_2=everywhere)
    coupled = scene.add("Attention couple", model=model, positive=both, negative=everywhere, mode="Attention")
    scene.positive, scene.negative = [coupled[0], 1], [coupled[0], 2]
    return coupled


def style_aligned(share_norm: str) -> Callable[[Scene, Link], Link]:
    return node("easy styleAlignedBatchAlign", share_norm=share_norm)


def automatic_advanced(scene: Scene, model: Link) -> Link:
    """With a negative prediction made up in the first steps, and both changed."""
    parts = ("fake_uncond_start", "lerp_uncond", "subtract_latent_mean", "latent_intensity_rescale")
    settings = dict.fromkeys(parts, True)
    return scene.add("Automatic CFG - Advanced", model=model, uncond_sigma_start=5.5, **settings)


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
    Case("Comfy-WaveSpeed", "First block cache", node("ApplyFBCacheOnModel", residual_diff_threshold=1.0)),
    Case("ComfyUI-Advanced-ControlNet", "reference-only ControlNet", prompts=reference_controlnet),
    Case("ComfyUI-AnimateDiff-Evolved", "context windows of a batch", evolved, scene={"batch": 6}),
    Case("ComfyUI-AutomaticCFG", "Automatic CFG", node("Automatic CFG")),
    Case("ComfyUI-AutomaticCFG", "Advanced", automatic_advanced),
    Case("ComfyUI-AutomaticCFG", "Excellent attention", node("Automatic CFG - Excellent attention")),
    Case("ComfyUI-AutomaticCFG", "Warp Drive", node("Automatic CFG - Warp Drive")),
    Case("ComfyUI-Easy-Use", "StyleAligned, norms not shared", style_aligned("disabled"), scene={"batch": 2}),
    Case("ComfyUI-Easy-Use", "StyleAligned", style_aligned("both"), scene={"batch": 2}),
    Case("ComfyUI-Impact-Pack", "KSampler (pipe)", sample=basic_pipe),
    Case("ComfyUI-Impact-Pack", "Detailer (SEGS)", sample=detailer),
    Case(
        *("ComfyUI-Inspire-Pack", "KSampler"),
        sample=sampler("KSampler //Inspire", noise_mode="CPU"),
        beside=("ComfyUI-Impact-Pack",),
    ),
    Case("ComfyUI-Inspire-Pack", "RegionalCFG", node("RegionalCFG //Inspire")),
    Case("ComfyUI-KJNodes", "CFGZeroStar", node("CFGZeroStarAndInit")),
    Case("ComfyUI-KJNodes", "ScheduledCFGGuidance", sample=guider("ScheduledCFGGuidance")),
    tiled_diffusion("MultiDiffusion"),
    tiled_diffusion("Mixture of Diffusers"),
    tiled_diffusion("SpotDiffusion"),
    Case(
        *("ComfyUI-layerdiffuse", "SD15, Attention Injection"),
        node("LayeredDiffusionApply", config="SD15, Attention Injection, attn_sharing"),
        files=layerdiffuse_files,
        note=GENERATED,
    ),
    Case("ComfyUI-ppm", "CFGLimiterGuider", sample=guider("CFGLimiterGuider")),
    Case("ComfyUI-ppm", "SkipFirstStepCFG", node("SkipFirstStepCFG")),
    Case("ComfyUI-ppm", "TCFGAdvanced", node("TCFGAdvanced")),
    Case("ComfyUI-GGUF", LOADS_ONLY),
    Case("ComfyUI_ADV_CLIP_emb", "weighted prompt", prompts=advanced_text),
    Case("ComfyUI_IPAdapter_plus", "IPAdapter Embeds", ipadapter, files=ipadapter_files, note=GENERATED),
    Case("ComfyUI_TiledKSampler", "Tiled KSampler", sample=TILED_SAMPLER, scene=WIDE),
    Case("ComfyUI_UltimateSDUpscale", "No Upscale", sample=upscale),
    Case("ComfyUI_smZNodes", "settings", smz_settings),
    Case("Skimmed_CFG", "Skimmed CFG", node("Skimmed CFG")),
    Case("Skimmed_CFG", "Difference CFG", node("Skimmed CFG - Difference CFG")),
    Case("attention-couple-ComfyUI", "Attention couple", attention_couple),
    Case("cgem156-ComfyUI", "ScaleCrafter", node("ScaleCrafter|cgem156", dilation_rate=2.0, end=1000)),
    Case("cgem156-ComfyUI", "Reference", node("ReferenceApply|cgem156"), scene={"batch": 2}),
    Case("comfyui-prompt-control", "attention couple", prompts=couple),
    Case("efficiency-nodes-comfyui", "KSampler (Efficient)", sample=EFFICIENT),
    Case("sd-dynamic-thresholding", "Dynamic thresholding", node("DynamicThresholdingFull")),
    Case("sd-perturbed-attention", "PAG", node("PerturbedAttention")),
    Case("sd-perturbed-attention", "momentum", node("MomentumGuidance")),
    Case("sd-perturbed-attention", "token perturbation", node("TokenPerturbationGuidance"), note=STACKS),
    sliding_windows(),
    Case("sd-perturbed-attention", "smoothed energy", node("SmoothedEnergyGuidanceAdvanced")),
)
