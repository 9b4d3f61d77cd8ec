"""Finds the images that cannot be read, before any work depends on them."""

from __future__ import annotations

import json
import os
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from imbalance_vlm.data.dataset import FileImages, Images
from imbalance_vlm.files import cache_folder, write_json
from imbalance_vlm.progress import bar


def unreadable(images: Images) -> dict[int, str]:
    """Row and reason of every image that cannot be decoded to its last byte.

    The answer is remembered under the images' fingerprint, so a set is read through once. JPEG files are decoded at an
    eighth of their size, which still walks through all their data and finds a file cut short.
    """
    if not isinstance(images, FileImages):
        return {}
    remembered = cache_folder() / "readable" / f"{images.fingerprint}.json"
    if remembered.is_file():
        try:
            known = json.loads(remembered.read_text(encoding="utf-8"))
            return {int(row): str(reason) for row, reason in known.items()}
        except (OSError, ValueError):
            remembered.unlink(missing_ok=True)
    found = {}
    with (
        warnings.catch_warnings(),  # around the pool: the filters are the whole process's
        ThreadPoolExecutor(os.cpu_count()) as pool,
        bar(len(images), "check images", "img") as progress,
    ):
        warnings.simplefilter("ignore")
        for row, reason in enumerate(pool.map(lambda path: _reason(images, path), images.paths, chunksize=64)):
            if reason:
                found[row] = reason
            progress.update()
    write_json(remembered, found)
    return found


def _reason(images: FileImages, path: str) -> str:
    try:
        file = images.root / path
        if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait for ever
            return "not a regular file"
        with Image.open(file) as image:
            image.draft("RGB", (32, 32))
            image.load()
    except Exception as error:  # decoders raise a dozen types, all of which mean the same here
        return " ".join(str(error).split()) or type(error).__name__
    return ""
