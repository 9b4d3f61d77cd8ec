"""The contact sheet of the largest and smallest classes."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from imbalance_vlm.verification.contact_sheet import show
from tests.verification.test_verify import cut, write
from tests.verification.test_verify import sound as sound


def test_the_sheet_has_head_and_tail(sound: Path) -> None:
    assert show(sound, classes=1, images=3).size == (220 + 3 * 102 + 6, 2 * 102 + 6)  # all classes, once
    write(sound / "train" / "emu" / "1.jpg", 7)
    assert show(sound, classes=1, images=3).size == (220 + 3 * 102 + 6, 2 * 102 + 6 + 6)  # and a line between
    assert show(sound, classes=5, images=3).size == (220 + 3 * 102 + 6, 3 * 102 + 6)
    cut(sound)
    show(sound, classes=1, images=3, out="sheet.png")
    with Image.open("sheet.png") as image:
        assert image.getpixel((230, 10)) == (225, 205, 205)
