"""Weights that are fetched: whether they are on this machine, whether they could be fetched, and how to fetch them.

Hub libraries try a file several times under several names, which takes most of a minute where there is no network.
Here one short question decides, before anything is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from imbalance_vlm.errors import InputError

SECONDS = 5.0
"""How long the hub may take to answer before it counts as out of reach."""


def require_repository(repository: str, files: Sequence[str], what: str, remedy: str) -> None:
    """Refuse at once what a Hugging Face repository cannot give.

    Args:
        repository: "ORG/NAME".
        files: any one of which will do.
        what: is asked for, for the message.
        remedy: how to have it all the same.

    Raises:
        InputError: none of the files is in the cache, and the hub is out of reach or switched off.
    """
    from huggingface_hub import try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return
    if offline():
        why = "HF_HUB_OFFLINE is set, which forbids downloads"
    elif not hub_answers():
        why = f"the hub gave no answer within {SECONDS:.0f} seconds"
    else:
        return
    raise InputError(f"{what} must be on this machine or within reach of it, and are neither: {why}. {remedy}")


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids downloads, now or when huggingface_hub was imported."""
    from huggingface_hub import constants

    said = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return said or bool(constants.HF_HUB_OFFLINE)


def hub_answers() -> bool:
    """Whether the hub answers within `SECONDS`, through the proxies that its library is set up with."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # of whichever client this version of the library uses
        return False
    return True


def download_command(repository: str, file: str = "") -> str:
    """What fetches a repository, or a file of it, into a folder.

    >>> download_command("laion/CLIP-ViT-B-32")
    'hf download laion/CLIP-ViT-B-32 --local-dir CLIP-ViT-B-32'
    """
    folder = repository.rpartition("/")[2]
    return f"hf download {repository}{f' {file}' if file else ''} --local-dir {folder}"
