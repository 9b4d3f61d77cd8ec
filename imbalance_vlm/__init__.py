"""Long-tailed recognition with vision-language models.

    import imbalance_vlm
    result = imbalance_vlm.run("icons_lt/linear_probe", {"balancing.loss": "focal"})
    result.scores["few"]

Everything is imported when it is first used, so that `import imbalance_vlm` itself is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from imbalance_vlm.version import __version__ as __version__

if TYPE_CHECKING:
    from imbalance_vlm.balancing.losses.factory import create_loss as create_loss
    from imbalance_vlm.balancing.prototypes import create_prototypes as create_prototypes
    from imbalance_vlm.data.prepare import create_dataset as create_dataset
    from imbalance_vlm.encoders.factory import create_encoder as create_encoder
    from imbalance_vlm.errors import InputError as InputError
    from imbalance_vlm.heads.factory import create_head as create_head
    from imbalance_vlm.long_tail import LongTail as LongTail
    from imbalance_vlm.recipe.load import list_recipes as list_recipes
    from imbalance_vlm.runs.classifier import TrainedClassifier as TrainedClassifier
    from imbalance_vlm.runs.classifier import predict_images as predict_images
    from imbalance_vlm.runs.study import run as run
    from imbalance_vlm.verification.verify import verify as verify

_MODULES = {
    "run": "imbalance_vlm.runs.study",
    "TrainedClassifier": "imbalance_vlm.runs.classifier",
    "predict_images": "imbalance_vlm.runs.classifier",
    "create_dataset": "imbalance_vlm.data.prepare",
    "create_encoder": "imbalance_vlm.encoders.factory",
    "create_head": "imbalance_vlm.heads.factory",
    "create_loss": "imbalance_vlm.balancing.losses.factory",
    "create_prototypes": "imbalance_vlm.balancing.prototypes",
    "list_recipes": "imbalance_vlm.recipe.load",
    "InputError": "imbalance_vlm.errors",
    "LongTail": "imbalance_vlm.long_tail",
    "verify": "imbalance_vlm.verification.verify",
}

__all__ = [*_MODULES, "list_datasets", "list_encoders", "list_heads", "list_losses", "list_samplers", "list_tunings"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'imbalance_vlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


def _names(kind: str) -> list[str]:
    from imbalance_vlm.components import catalogue

    catalogue.load_plugins()
    return catalogue.REGISTRIES[kind].names()


def list_datasets() -> list[str]:
    """Names of the datasets that a recipe can use."""
    return _names("datasets")


def list_encoders() -> list[str]:
    """Names of the encoder adapters; each takes every model of its library."""
    return _names("encoders")


def list_heads() -> list[str]:
    """Names of the heads."""
    return _names("heads")


def list_losses() -> list[str]:
    """Names of the losses."""
    return _names("losses")


def list_samplers() -> list[str]:
    """Names of the samplers."""
    return _names("samplers")


def list_tunings() -> list[str]:
    """Names of the tunings."""
    return _names("tunings")
