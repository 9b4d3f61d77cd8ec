"""The tokenizer of an open_clip model, or a stand-in whose error states what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def check_distinct(tokenizer: Any, class_names: Sequence[str], templates: Sequence[str]) -> None:
    """Check that a tokenizer tells the classes apart: a text tower gives equal tokens the same feature.

    Args:
        tokenizer: of open_clip.
        class_names: as a person would write them; an underscore is read as a space.
        templates: sentences with one `{}` for the name.

    Raises:
        InputError: two classes whose sentences have the same tokens in every template; it names both, and says whether
            the sentences are too long or differ only in what the tokenizer drops.
    """
    alike = [list(range(len(class_names)))]  # groups of classes that no template tells apart yet
    for template in templates:
        sentences = {label: sentence(template, class_names[label]) for group in alike for label in group}
        alike = [part for group in alike for part in _same_tokens(tokenizer, group, sentences)]
        if not alike:
            return
    first, second = alike[0][:2]
    pair = {label: sentence(templates[0], class_names[label]) for label in (first, second)}
    length = 8 * max(map(len, pair.values())) + 16  # a tokenizer may give several tokens for one character
    cut = not _same_tokens(tokenizer, [first, second], pair, length)
    raise equal_classes(class_names, first, second, len(tokenizer([pair[first]])[0]) if cut else None)


def equal_classes(class_names: Sequence[str], first: int, second: int, context: int | None = None) -> InputError:
    """The error about two classes with equal tokens; `context` is the tower's length if their sentences are cut."""
    reason = f"after the {context} tokens that the text tower reads" if context else "in case, accents or punctuation"
    return InputError(
        f"the tokenizer must tell all classes apart, but reads class {first} ({class_names[first]!r}) and class "
        f"{second} ({class_names[second]!r}) as the same text: their sentences differ at most {reason}; "
        "tell them apart by other words"
    )


def sentence(template: str, class_name: str) -> str:
    """The sentence about a class; an underscore in its name is read as a space."""
    return template.format(class_name.replace("_", " "))


def _same_tokens(
    tokenizer: Any, labels: Sequence[int], sentences: Mapping[int, str], length: int | None = None
) -> list[list[int]]:
    """The groups of two and more of these labels whose sentences have the same tokens."""
    groups: dict[bytes, list[int]] = {}
    for start in range(0, len(labels), 1024):
        chunk = labels[start : start + 1024]
        rows = tokenizer([sentences[label] for label in chunk], **({"context_length": length} if length else {}))
        for label, row in zip(chunk, rows.numpy(), strict=True):
            groups.setdefault(row.tobytes(), []).append(label)
    return [group for group in groups.values() if len(group) > 1]


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
