"""DreamCache in plain PyTorch: which layers, what is cached, what is trained, and how both lie on disk.

Nothing here knows of ComfyUI; `nodes/` brings the two together. Paper: arXiv 2411.17786.
"""

from .adapter import Adapter, AdapterLayer, Attention, attend, untrained_adapter
from .adapter_file import SUFFIXES, AdapterDescription, AdapterFile, describe_adapter, load_adapter, save_adapter
from .attention_maps import AttentionMap, attention_maps, mean_map
from .attention_sheet import Look, attention_sheet
from .batches import make_batches
from .catalogue import Catalogue, checkpoint_family
from .checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from .combined_references import CombinedReferences, References, average, combine
from .comparison import Comparison, compare, read_values
from .contact_sheet import contact_sheet
from .disk_cache import DiskCache, fingerprint
from .errors import DreamCacheError
from .evaluation import (
    Drawing,
    Evaluation,
    MaskFinder,
    describe_scores,
    measure_drawings,
    plan_drawings,
    read_manifest,
    save_drawing,
    save_evaluation,
)
from .files import name_and_hash
from .layers import (
    DEFAULT_STAGES,
    STAGES,
    Stage,
    TransformerLayer,
    UNetStructure,
    group_of,
    read_structure,
    select_layers,
)
from .loss_curve import draw_loss_curve, read_loss_curve
from .masks import resize_mask
from .measuring import (
    METRICS,
    ImageEncoder,
    Picture,
    PromptEncoder,
    Scores,
    SubjectMeasure,
    Yardsticks,
    mean_scores,
)
from .pictures import to_image, to_tensor
from .prompts import ChosenPrompt, choose_line, combine_words
from .provenance import VERSION, Provenance, hash_weights, trained_adapter
from .reference_cache import ReferenceCache, Source
from .reference_file import (
    THUMBNAIL_SIZE,
    Precision,
    ReferenceDescription,
    ReferenceFile,
    describe_references,
    load_references,
    make_thumbnail,
    read_thumbnails,
    save_references,
)
from .reference_image import resize_to_area, silhouette, subject_box, subject_on_white
from .reference_sheet import feature_colours, reference_sheet
from .strengths import CONSTANT, MAX_STRENGTH, Curve, Strengths, at_progress, ease_in, ease_out, read_curve
from .subjects import Subject, load_picture, open_subjects
from .training import (
    Batch,
    EncodedPrompts,
    FrozenBase,
    Progress,
    Trainer,
    TrainingSettings,
    denoising_loss,
    draw,
    resume,
    run,
)
from .training_folder import TrainingFolder
from .triplet_files import save_sample
from .triplets import Triplet, Triplets, epoch_order, open_triplets
from .vision_transformer import VisionTransformer, load_vision_transformer

__all__ = [
    "CONSTANT",
    "DEFAULT_STAGES",
    "MAX_STRENGTH",
    "METRICS",
    "STAGES",
    "SUFFIXES",
    "THUMBNAIL_SIZE",
    "VERSION",
    "Adapter",
    "AdapterDescription",
    "AdapterFile",
    "AdapterLayer",
    "Attention",
    "AttentionMap",
    "Batch",
    "Catalogue",
    "ChosenPrompt",
    "CombinedReferences",
    "Comparison",
    "Curve",
    "DiskCache",
    "Drawing",
    "DreamCacheError",
    "EncodedPrompts",
    "Evaluation",
    "FrozenBase",
    "ImageEncoder",
    "Look",
    "MaskFinder",
    "Picture",
    "Precision",
    "Progress",
    "PromptEncoder",
    "Provenance",
    "ReferenceCache",
    "ReferenceDescription",
    "ReferenceFile",
    "References",
    "Scores",
    "Source",
    "Stage",
    "Strengths",
    "Subject",
    "SubjectMeasure",
    "Trainer",
    "TrainingFolder",
    "TrainingSettings",
    "TransformerLayer",
    "Triplet",
    "Triplets",
    "UNetStructure",
    "VisionTransformer",
    "Yardsticks",
    "at_progress",
    "attend",
    "attention_maps",
    "attention_sheet",
    "average",
    "checkpoint_family",
    "choose_line",
    "combine",
    "combine_words",
    "compare",
    "contact_sheet",
    "denoising_loss",
    "describe_adapter",
    "describe_references",
    "describe_scores",
    "draw",
    "draw_loss_curve",
    "ease_in",
    "ease_out",
    "epoch_order",
    "feature_colours",
    "fingerprint",
    "group_of",
    "hash_weights",
    "load_adapter",
    "load_checkpoint",
    "load_picture",
    "load_references",
    "load_vision_transformer",
    "make_batches",
    "make_thumbnail",
    "mean_map",
    "mean_scores",
    "measure_drawings",
    "name_and_hash",
    "newest_checkpoint",
    "open_subjects",
    "open_triplets",
    "plan_drawings",
    "read_curve",
    "read_loss_curve",
    "read_manifest",
    "read_structure",
    "read_thumbnails",
    "read_values",
    "reference_sheet",
    "resize_mask",
    "resize_to_area",
    "resume",
    "run",
    "save_adapter",
    "save_checkpoint",
    "save_drawing",
    "save_evaluation",
    "save_references",
    "save_sample",
    "select_layers",
    "silhouette",
    "subject_box",
    "subject_on_white",
    "to_image",
    "to_tensor",
    "trained_adapter",
    "untrained_adapter",
]
