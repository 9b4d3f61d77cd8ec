"""Only what was trained, in a file that knows which base it belongs to."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from imbalance_vlm.encoders.base import check_base
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import write_atomically
from imbalance_vlm.tuning.peft.base import Tuned


def save_trained(path: Path, tuned: Tuned, fingerprint: str, metadata: dict[str, str] | None = None) -> None:
    """What was trained as safetensors, with the fingerprint of the base in its header.

    Args:
        path: where to.
        tuned: the tower under tuning.
        fingerprint: the encoder's.
        metadata: more entries for the header.
    """
    tensors = {name: value.cpu().contiguous() for name, value in tuned.state().items()}
    entries = (metadata or {}) | {"base": fingerprint, "method": tuned.method}
    header = {"imbalance_vlm": json.dumps(entries, sort_keys=True)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, header))


def load_trained(path: Path, tuned: Tuned, fingerprint: str) -> None:
    """Load what `save_trained` wrote into a tower tuned in the same way.

    Raises:
        InputError: no such file, one that is something else, another base (with both fingerprints) or another method.
    """
    if not path.is_file():
        raise InputError(f"no trained weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            entries = json.loads((file.metadata() or {}).get("imbalance_vlm", "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except Exception as error:  # a damaged file raises one of several types
        raise InputError(f"{path} cannot be read as trained weights: {' '.join(str(error).split())[:300]}") from error
    if "base" not in entries:
        raise InputError(f"{path} does not say which base model it belongs to: it was not written by save_trained")
    check_base(path, entries["base"], fingerprint)
    if entries.get("method") != tuned.method:
        raise InputError(
            f"{path} was trained by method '{entries.get('method')}', the tower is tuned by '{tuned.method}'; give "
            "the recipe of that run"
        )
    tuned.load(state)
