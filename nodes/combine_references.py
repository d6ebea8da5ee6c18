"""DreamCache Combine References: several reference caches become one."""

from __future__ import annotations

from comfy_api.latest import io
from typing_extensions import override

from ..dreamcache_core.errors import DreamCacheError
from ..dreamcache_core.io.numbers import parse_numbers
from ..dreamcache_core.reference.combining import average, combine
from .schema import CATEGORY, ReferenceCacheType

CONCATENATE = "concatenate"
AVERAGE = "average"
ONE_PER_LATENT = "one per latent"
MAX_STRENGTH = 10.0
_NAMES = [f"reference_{number}" for number in range(1, 65)]


class DreamCacheCombineReferences(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamCacheCombineReferences",
            display_name="DreamCache Combine References",
            category=CATEGORY,
            description="Combines several references: use all of them at once, their average, or one for each image "
            "of the batch.",
            search_aliases=["several references", "batch references", "average", "combine embeds"],
            inputs=[
                io.Autogrow.Input(
                    "references",
                    template=io.Autogrow.TemplateNames(ReferenceCacheType.Input("reference"), names=_NAMES, min=1),
                    tooltip="Reference caches of the same base model, in any sizes. A new input appears each time you "
                    "connect one.",
                ),
                io.Combo.Input(
                    "mode",
                    options=[CONCATENATE, AVERAGE, ONE_PER_LATENT],
                    default=CONCATENATE,
                    tooltip="concatenate: every image uses all references in full detail. average: every image uses "
                    "their mean. one per latent: the first image of the batch uses the first reference, and so on.",
                ),
                io.String.Input(
                    "strengths",
                    default="",
                    placeholder="1, 0.5",
                    tooltip="How much each reference counts relative to the others: numbers from 0 to 10 in the order "
                    "of the inputs. Missing numbers are 1. Set the overall strength in Apply DreamCache.",
                ),
            ],
            outputs=[
                ReferenceCacheType.Output(
                    "reference_cache", tooltip="For Apply DreamCache or DreamCache Save Reference Cache."
                )
            ],
        )

    @classmethod
    @override
    def execute(cls, references: io.Autogrow.Type, mode: str, strengths: str) -> io.NodeOutput:
        # In the order of their names, whatever that of the prompt.
        given = [references[name] for name in _NAMES if references.get(name) is not None]
        if mode == ONE_PER_LATENT:
            if strengths.strip():
                raise DreamCacheError(
                    "In the mode one per latent, each image uses a single reference, so strengths have no effect: "
                    "leave strengths empty."
                )
            return io.NodeOutput(combine(given, [1.0] * len(given), per_latent=True))
        weights = _read_strengths(strengths, len(given))
        return io.NodeOutput(average(given, weights) if mode == AVERAGE else combine(given, weights))


def _read_strengths(text: str, count: int) -> list[float]:
    strengths = parse_numbers(text, 0, MAX_STRENGTH)
    if strengths is None:
        raise DreamCacheError(
            f'"{text}" is not a list of strengths: write numbers from 0 to {MAX_STRENGTH:g} separated by commas, such '
            "as 1, 0.5."
        )
    if len(strengths) > count:
        raise DreamCacheError(
            f"There are {len(strengths)} strengths for {count} references: write at most one for each."
        )
    return [*strengths, *[1.0] * (count - len(strengths))]
