"""Where an open_clip model's architecture and weights are: embedded, in local files, or on a hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imbalance_vlm.encoders.formats import CONFIG_SHAPE, weights_file
from imbalance_vlm.encoders.hub import download_command, require_repository
from imbalance_vlm.encoders.pretraining import MINI_CLIP
from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.files import expanded, read_json
from imbalance_vlm.values import written

CONFIG = "open_clip_config.json"


@dataclass(frozen=True)
class Location:
    """What open_clip calls a model, and where its weights are.

    Args:
        source: open_clip's name of the model, "local-dir:..." and "hf-hub:..." included.
        path: the local weights file or model folder; None if open_clip finds the weights by their tag, or if there are
            none.
    """

    source: str
    path: Path | None = None

    @property
    def folder(self) -> Path | None:
        """The folder of the local file, or the model folder itself."""
        return self.path if self.path is None or self.path.is_dir() else self.path.parent

    @property
    def is_model_folder(self) -> bool:
        """Whether the architecture comes from a local folder too."""
        return self.source.startswith("local-dir:")

    def config(self) -> dict[str, Any]:
        """The open_clip configuration in the local folder, {} without one."""
        return read_json(self.folder / CONFIG, CONFIG_SHAPE) if self.folder else {}


def locate(model: str, pretrained: str | None) -> Location:
    """Find a model by the names that a recipe uses.

    Args:
        model: see `OpenClipSpec.name`.
        pretrained: see `OpenClipSpec.pretrained`.

    Raises:
        InputError: an unknown model, tag or file, with what exists.
    """
    if model == "mini-clip":
        tags = sorted(path.name for path in MINI_CLIP.iterdir() if path.is_dir())
        if pretrained not in tags:
            raise InputError(
                f"`pretrained` of 'mini-clip' must be one of {', '.join(tags)}, got {pretrained!r}."
                f"{did_you_mean(str(pretrained), tags)}"
            )
        folder = MINI_CLIP / pretrained
        return Location(f"local-dir:{folder}", folder)
    if model.startswith("local-dir:"):
        folder = expanded(model.removeprefix("local-dir:"), "encoder 'local-dir:PATH'")
        if not (folder / CONFIG).is_file():
            raise InputError(f"encoder '{model}' must be a folder with {CONFIG}, and there is none")
        if pretrained not in (None, "random"):
            raise InputError(
                f"`pretrained` must be left out with encoder '{model}', whose folder holds the weights, "
                f"got {pretrained!r}"
            )
        return Location(f"local-dir:{folder}", folder)
    if model.startswith("hf-hub:"):
        repository = model.removeprefix("hf-hub:")
        if ".." in repository or not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", repository):
            raise InputError(f"encoder {written(model)} must be 'hf-hub:ORG/NAME', of letters, digits, - _ and .")
        return Location(model)
    return _named(model, pretrained)


def _named(model: str, pretrained: str | None) -> Location:
    import open_clip

    names = open_clip.list_models()
    if model.replace("/", "-") not in names:
        hint = did_you_mean(model, [*names, "mini-clip"])
        raise InputError(
            f"unknown encoder {model!r}.{hint} It must be 'mini-clip', an open_clip model (open_clip.list_models() "
            "lists them), 'local-dir:PATH', 'hf-hub:ORG/NAME' or 'timm:MODEL'"
        )
    tags = open_clip.list_pretrained_tags_by_model(model.replace("/", "-"))
    if pretrained == "random" or pretrained in tags:
        return Location(model)
    path = expanded(str(pretrained), "`pretrained`")
    if pretrained and path.exists():
        weights_file(path)  # anything else is refused before all of it is hashed
        return Location(model, path)
    raise InputError(
        f"`pretrained` of '{model}' must be a tag ({', '.join(tags) or 'none is known'}), a local weights file, a "
        f"folder with one, or 'random', got {pretrained!r}.{did_you_mean(str(pretrained), tags)}"
    )


def tag_config(model: str, pretrained: str | None) -> dict[str, Any]:
    """open_clip's record of a tag, {} for anything else."""
    from open_clip import pretrained as library

    config: dict[str, Any] = library.get_pretrained_cfg(model.replace("/", "-"), str(pretrained))
    return config


def require_download(model: str, pretrained: str | None) -> None:
    """Refuse weights that would have to be downloaded and cannot be, before open_clip tries.

    Raises:
        InputError: weights neither in the cache nor within reach, with the command that downloads them.
    """
    if model.startswith("hf-hub:"):
        repository, files = model.removeprefix("hf-hub:"), [CONFIG]
        setting = f"encoder.name=local-dir:/path/to/{repository.rpartition('/')[2]}"
    else:
        repository, _, file = tag_config(model, pretrained).get("hf_hub", "").rpartition("/")
        if not repository:
            return
        files = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        setting = f"encoder.pretrained=/path/to/{repository.rpartition('/')[2]}"
    require_repository(
        repository,
        files,
        f"the weights '{pretrained or repository}' of encoder '{model}'",
        f"Where there is a network: {download_command(repository)}. Copy the folder here and set {setting}",
    )
