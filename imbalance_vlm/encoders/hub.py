"""Weights on a hub: whether they are on this machine, whether they can be downloaded, and how to download them.

Hub libraries try a file several times under several names, which takes most of a minute without a network. Here one
short request decides before anything is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from imbalance_vlm.errors import InputError

SECONDS = 5.0
"""Time that the hub has to answer before it counts as out of reach."""


def require_repository(repository: str, files: Sequence[str], subject: str, remedy: str) -> None:
    """Check that a file of a Hugging Face repository is in the cache or can be downloaded.

    Args:
        repository: "ORG/NAME".
        files: alternatives; any one of them is enough.
        subject: of the error.
        remedy: the last sentence of the error.

    Raises:
        InputError: none of the files is in the cache, and the hub is out of reach or downloads are forbidden.
    """
    from huggingface_hub import try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return
    if offline():
        reason = "HF_HUB_OFFLINE is set, which forbids downloads"
    elif not hub_answers():
        reason = f"the hub gave no answer within {SECONDS:.0f} seconds"
    else:
        return
    raise InputError(f"{subject} must be on this machine or within reach of it, and are neither: {reason}. {remedy}")


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids downloads, now or when huggingface_hub was imported."""
    from huggingface_hub import constants

    forbidden_now = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return forbidden_now or bool(constants.HF_HUB_OFFLINE)


def hub_answers() -> bool:
    """Whether the hub answers within `SECONDS`, through the proxies that huggingface_hub is configured with."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # the type depends on the HTTP client of this version
        return False
    return True


def download_command(repository: str, file: str = "") -> str:
    """The shell command that downloads a repository, or one of its files, into a folder.

    >>> download_command("laion/CLIP-ViT-B-32")
    'hf download laion/CLIP-ViT-B-32 --local-dir CLIP-ViT-B-32'
    """
    folder = repository.rpartition("/")[2]
    return f"hf download {repository}{f' {file}' if file else ''} --local-dir {folder}"
