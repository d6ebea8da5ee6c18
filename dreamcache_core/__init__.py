"""DreamCache in plain PyTorch: which layers, what is cached, what is trained, and how both lie on disk.

Nothing here knows of ComfyUI; `nodes/` brings the two together. Paper: arXiv 2411.17786.
"""

from .adapter import Adapter, AdapterLayer, Attention, attend, untrained_adapter
from .adapter_file import SUFFIXES, AdapterFile, load_adapter, save_adapter
from .batches import make_batches
from .checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from .contact_sheet import contact_sheet
from .disk_cache import DiskCache, fingerprint
from .errors import DreamCacheError
from .layers import DEFAULT_STAGES, STAGES, Stage, TransformerLayer, UNetStructure, read_structure, select_layers
from .loss_curve import draw_loss_curve
from .pictures import to_image, to_tensor
from .prompts import ChosenPrompt, choose_line, combine_words
from .provenance import VERSION, Provenance, hash_weights, trained_adapter
from .reference_cache import ReferenceCache, load_reference_cache
from .reference_image import resize_to_area, subject_box, subject_on_white
from .training import Batch, FrozenBase, Progress, Trainer, TrainingSettings, denoising_loss, draw, resume, run
from .training_folder import TrainingFolder
from .triplet_files import save_sample
from .triplets import Triplet, Triplets, epoch_order, open_triplets

__all__ = [
    "DEFAULT_STAGES",
    "STAGES",
    "SUFFIXES",
    "VERSION",
    "Adapter",
    "AdapterFile",
    "AdapterLayer",
    "Attention",
    "Batch",
    "ChosenPrompt",
    "DiskCache",
    "DreamCacheError",
    "FrozenBase",
    "Progress",
    "Provenance",
    "ReferenceCache",
    "Stage",
    "Trainer",
    "TrainingFolder",
    "TrainingSettings",
    "TransformerLayer",
    "Triplet",
    "Triplets",
    "UNetStructure",
    "attend",
    "choose_line",
    "combine_words",
    "contact_sheet",
    "denoising_loss",
    "draw",
    "draw_loss_curve",
    "epoch_order",
    "fingerprint",
    "hash_weights",
    "load_adapter",
    "load_checkpoint",
    "load_reference_cache",
    "make_batches",
    "newest_checkpoint",
    "open_triplets",
    "read_structure",
    "resize_to_area",
    "resume",
    "run",
    "save_adapter",
    "save_checkpoint",
    "save_sample",
    "select_layers",
    "subject_box",
    "subject_on_white",
    "to_image",
    "to_tensor",
    "trained_adapter",
    "untrained_adapter",
]
