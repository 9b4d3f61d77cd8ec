"""Inspections kept between calls, outside of the user's folders: a second call reads only what has changed."""

from __future__ import annotations

from dataclasses import astuple, fields

import PIL

from imbalance_vlm.data.pixels import PIXELS_VERSION
from imbalance_vlm.data.state_table import StateTable
from imbalance_vlm.verification.inspection import Inspection

VERSION = 2
"""Increased whenever `inspect` gives other results for the same pixels."""


class InspectionCache:
    """A table of inspections, found again by the image's container (its folder or archive), name and state.

    Only what the image's bytes say is kept: an image that could not be read is read again the next time.

    Raises:
        InputError: the table cannot be used.
    """

    def __init__(self) -> None:
        columns = [field.name for field in fields(Inspection)]
        # Another Pillow may read what this one cannot.
        self._table = StateTable(f"inspections-{VERSION}.{PIXELS_VERSION}-pillow-{PIL.__version__}", columns)
        self.path = self._table.path

    def __enter__(self) -> InspectionCache:
        return self

    def __exit__(self, *error: object) -> None:
        self._table.__exit__(None, None, None)

    def get(self, container: str, name: str, state: str) -> Inspection | None:
        """The inspection of an image, or None where there is none of its present state."""
        row = self._table.get(f"{container}\0{name}", state)
        return None if row is None else Inspection(*row)

    def add(self, container: str, name: str, state: str, inspection: Inspection) -> None:
        """Keep an inspection of an image's bytes; an older one of the same image is replaced."""
        if inspection.content:
            self._table.add(f"{container}\0{name}", state, astuple(inspection))
