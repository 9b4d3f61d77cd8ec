"""A dataset that an index lists: one `split<TAB>class<TAB>path` per line."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from imbalance_vlm.data.dataset import Dataset, FileImages, Split
from imbalance_vlm.data.readability import read_decodable
from imbalance_vlm.data.reader import Listing, OnError
from imbalance_vlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class IndexedReader:
    """Images that a tab-separated index lists.

    Args:
        root: folder of the images and of the index.
        index: name of the index in it.
        on_error: what an unreadable image does: "raise" lists all of them and stops, "skip" leaves them out.
    """

    root: Path
    index: str = "index.tsv"
    on_error: OnError = "raise"

    def list(self) -> Listing:
        rows = self._rows()
        names = sorted({name for _, name, _ in rows})
        splits = {}
        for split in dict.fromkeys(split for split, _, _ in rows):
            paths = tuple(path for part, _, path in rows if part == split)
            labels = [names.index(name) for part, name, _ in rows if part == split]
            splits[split] = Split(FileImages(Path(self.root), paths), labels)
        return Listing(name="indexed", class_names=tuple(names), splits=splits)

    def read(self) -> Dataset:
        return read_decodable(self.list(), self.on_error)

    def identity(self) -> str:
        rows = self._rows()
        images = FileImages(Path(self.root), tuple(path for _, _, path in rows))
        return hashlib.sha256(f"{rows}{images.fingerprint}".encode()).hexdigest()

    def _rows(self) -> tuple[tuple[str, str, str], ...]:
        file = Path(self.root) / self.index
        if not file.is_file():
            raise InputError(f"`root` must be a folder with the file {self.index}, got {str(self.root)!r}")
        lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
        for number, line in enumerate(lines, 1):
            if len(line) != 3:
                raise InputError(f"{file}, line {number}: must be `split<TAB>class<TAB>path`, got {line}")
        return tuple((split, name, path) for split, name, path in lines)
