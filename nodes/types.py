"""What DreamCache nodes hand to each other, and where they stand in the menu. These names are in saved workflows."""

from comfy_api.latest import io

CATEGORY = "DreamCache"
TRAINING_CATEGORY = "DreamCache/training"

ReferenceCacheType = io.Custom("DREAMCACHE_REFERENCE_CACHE")
AdapterType = io.Custom("DREAMCACHE_ADAPTER")
