"""The adapters that a graph can choose by name: files of the models folder, and the model's own self-attention."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...dreamcache_core.adapter.file import load_adapter
from ...dreamcache_core.adapter.self_attention import SelfAttentionAdapter
from ...dreamcache_core.io.file_state import fingerprint
from .folders import ADAPTERS, missing_file_message
from .patching.injection import AnyAdapter, wrap_for_sampling

SELF_ATTENTION = {
    "none (the model's own attention)": SelfAttentionAdapter(),
    "none (the model's own attention, all layers)": SelfAttentionAdapter(all_layers=True),
}
"""The entries that need no file. These names are in saved workflows."""


def adapter_names() -> list[str]:
    """All names, those that need no file first."""
    return [*SELF_ATTENTION, *folder_paths.get_filename_list(ADAPTERS)]


def check_adapter(name: str) -> bool | str:
    """True, or why there is no adapter of this name."""
    if name in SELF_ATTENTION or folder_paths.get_full_path(ADAPTERS, name):
        return True
    return missing_file_message(ADAPTERS, name, "adapter")


def adapter_fingerprint(name: str) -> str:
    """A text that changes when the file does."""
    return "" if name in SELF_ATTENTION else fingerprint(_path(name))


def open_adapter(name: str) -> tuple[AnyAdapter, str]:
    """An adapter for sampling, and its description. Raises DreamCacheError for a file that can't be used."""
    if name in SELF_ATTENTION:
        return SELF_ATTENTION[name], SELF_ATTENTION[name].description
    file = load_adapter(_path(name))
    return wrap_for_sampling(file.adapter), file.description


def _path(name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise(ADAPTERS, name))
