"""What DreamCache nodes hand to each other, and where they stand in the menu. These names are in saved workflows."""

from comfy_api.latest import io

CATEGORY = "DreamCache"
TRAINING_CATEGORY = "DreamCache/training"

ReferenceCacheType = io.Custom("DREAMCACHE_REFERENCE_CACHE")
StrengthsType = io.Custom("DREAMCACHE_STRENGTHS")
AdapterType = io.Custom("DREAMCACHE_ADAPTER")
# ComfyUI's own, which older ones don't have.
CurveType = io.Custom("CURVE")
