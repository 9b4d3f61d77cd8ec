"""Style shifts: the classes of Icons-LT in one style each, for testing only, as ImageNet-Sketch is for ImageNet.

The drawings are those of the downstream families that Icons-LT does not train or validate on, without near-duplicates
of its training and validation drawings or of any drawing of the pre-training families, by the measure of
`imbalance-vlm data verify`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from tools.icons.copies import alike
from tools.icons.pool import Pool
from tools.icons.split import Classes
from tools.icons.topics import without_copies


@dataclass(frozen=True)
class Style:
    """A style of drawing.

    Args:
        name: of the dataset.
        sets: a pattern for the prefixes of the sets that are all in this style.
        icons: a pattern for the icon names of any set that say so.
    """

    name: str
    sets: str = "(?!)"
    icons: str = "(?!)"

    def has(self, prefix: str, icon: str) -> bool:
        """Whether an icon is in this style."""
        return bool(re.fullmatch(self.sets, prefix) or re.search(self.icons, icon))


STYLES = (
    Style(
        "icons_lt_colour",
        "flat-color-icons|glyphs-poly|marketeq|streamline(-cyber|-flex|-kameleon|-sharp|-stickies|-ultimate)?-color",
    ),
    Style("icons_lt_drawn", r"streamline-freehand(-color)?|pepicons(-\w+)?"),
    Style("icons_lt_duotone", "uim", r"-(duo|duotone|twotone|two-tone)\b"),
    Style("icons_lt_emoji", "emojione|twemoji|streamline-emojis"),
    Style("icons_lt_filled", r"bxs|fa[67]?-solid|uis", r"-(fill|filled|solid)\b"),
    Style("icons_lt_pixel", "pixel"),
)
"""The styles, by the names of their sets and icons; what they are called was checked on samples."""


def make_styles(pool: Pool, classes: Classes) -> dict[str, Classes]:
    """The test-only set of each style, with the classes that have a drawing in it, if any; rows are those of the pool.

    Args:
        pool: all drawings.
        classes: of Icons-LT.
    """
    label_of = {name: label for label, name in enumerate(classes.names)}
    among = pool.downstream & pool.usable
    labels = np.array(
        [label_of.get(concept, -1) if may else -1 for concept, may in zip(pool.concepts, among, strict=True)]
    )
    known = np.concatenate([classes.rows["train"], classes.rows["val"]])
    labels[known] = -1
    free = np.flatnonzero(labels >= 0)
    for rows in (known, np.flatnonzero(~pool.downstream & pool.usable)):
        labels[free[alike(pool.looks.take(free), pool.looks.take(rows))[0]]] = -1
    made = {}
    for style in STYLES:
        rows = np.array(
            [row for row in free if labels[row] >= 0 and style.has(pool.drawings[row].set, pool.drawings[row].name)],
            np.int64,
        )
        if not len(rows):
            continue
        rows = rows[without_copies(labels[rows], pool.images[rows])]
        rows = rows[np.argsort(labels[rows], kind="stable")]
        present, dense = np.unique(labels[rows], return_inverse=True)
        made[style.name] = Classes(tuple(classes.names[label] for label in present), {"test": rows}, {"test": dense})
    return made
