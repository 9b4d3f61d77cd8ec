"""The tokenizer of an open_clip model, or a stand-in whose error states what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from imbalance_vlm.encoders.architectures import has_transformers, quiet, text_config
from imbalance_vlm.encoders.hub import download_command, require_repository
from imbalance_vlm.encoders.locations import Location
from imbalance_vlm.errors import InputError

HF_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.txt")
"""Any of these is a Hugging Face tokenizer."""


class MissingTokenizer:
    """Takes the place of a tokenizer that this machine lacks, because the image tower works without one.

    Args:
        reason: what is missing, and the remedy; the message of the error when texts are tokenized.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        raise InputError(self.reason)


def load_tokenizer(model: str, location: Location) -> Any:
    """The model's tokenizer, or a `MissingTokenizer` where a library or a file is missing."""
    try:
        return _load(model, location)
    except Exception as error:  # a damaged vocabulary raises one of a dozen types
        reason = " ".join(str(error).split())[:300]
        return MissingTokenizer(f"the tokenizer of encoder '{model}' could not be made: {reason}")


def _load(model: str, location: Location) -> Any:
    import open_clip

    folder, model_folder = location.folder, location.path == location.folder
    config = location.config().get("model_cfg", {}).get("text_cfg", {}) if model_folder else {}
    config = config or text_config(model)
    name = config.get("hf_tokenizer_name")
    if not name:
        vocabulary = _vocabulary(folder) if folder and model_folder else {}
        return open_clip.get_tokenizer(location.source, **vocabulary)
    needs = f"encoder '{model}' reads texts with a Hugging Face tokenizer ({name})"
    if not has_transformers():
        return MissingTokenizer(f"{needs}, which needs the package transformers: pip install transformers")
    if folder and any((folder / file).is_file() for file in HF_FILES):
        return open_clip.tokenizer.HFTokenizer(
            str(folder),
            context_length=config.get("context_length", 77),
            tokenizer_mode=config.get("tokenizer_mode"),
            **dict(config.get("tokenizer_kwargs", {})),
        )
    try:
        remedy = f"Where there is a network: {download_command(name)}. Copy its files beside the weights"
        require_repository(name, HF_FILES, "its files", remedy)
    except InputError as error:
        return MissingTokenizer(f"{needs}: {error}")
    with quiet():
        return open_clip.get_tokenizer(location.source)


def _vocabulary(folder: Path) -> dict[str, str]:
    """A vocabulary in the model's folder or beside it, which open_clip would not search there."""
    for place in (folder, folder.parent):
        if files := sorted(place.glob("bpe*.txt.gz")):
            return {"bpe_path": str(files[0])}
    return {}
