"""The corpus of `tools/pretrain.py`: its order, its captions and its augmentation.

Everything random is a function of (seed, step) alone and is drawn for the whole global batch, so a resumed run and a
run on more devices see the same images in the same order.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

SIZES = {
    "icons-tiny": 27,
    "icons-small": 9,
    "icons-medium": 3,
    "icons-large": 1,
}  # corpus rows are divided by these


@dataclass(frozen=True)
class Corpus:
    """Images with the caption of each; `captions` are distinct, `caption_ids` point into them."""

    images: np.ndarray  # (N, 32, 32, 3) uint8
    captions: list[str]
    caption_ids: np.ndarray  # (N,)

    def __len__(self) -> int:
        return len(self.caption_ids)


def read_corpus(folder: Path, divisor: int = 1) -> Corpus:
    """The first N / divisor rows of `pretrain_images.npy` and `pretrain.tsv`, so that smaller sizes are nested."""
    images = np.load(folder / "pretrain_images.npy", mmap_mode="r")
    with (folder / "pretrain.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if rows and not rows[0][0].isdigit():  # a header line
        rows = rows[1:]
    if len(rows) != len(images):
        raise ValueError(f"`{folder}` must hold as many captions as images, got {len(rows)} and {len(images)}")
    rows_used = rows[: len(rows) // divisor]
    if not rows_used:
        raise ValueError(f"`divisor` must leave at least one of {len(rows)} rows, got {divisor}")
    names = [row[-1].strip() for row in rows_used]
    captions = sorted(set(names))
    index = {caption: i for i, caption in enumerate(captions)}
    return Corpus(np.ascontiguousarray(images[: len(rows_used)]), captions, np.array([index[name] for name in names]))


class Order:
    """An endless stream of row numbers: one permutation after another, each a function of (seed, epoch)."""

    def __init__(self, rows: int, batch: int, seed: int) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self._permutations: dict[int, np.ndarray] = {}

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            self._permutations = {k: v for k, v in self._permutations.items() if k == epoch - 1}
            self._permutations[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return self._permutations[epoch]

    def __call__(self, step: int) -> np.ndarray:
        """Row numbers of the global batch of this step, (B,); a batch may span the end of an epoch."""
        positions = np.arange(step * self.batch, (step + 1) * self.batch)
        epochs = positions // self.rows
        parts = [self._permutation(e)[positions[epochs == e] % self.rows] for e in np.unique(epochs).tolist()]
        return np.concatenate(parts)


class Captioner:
    """Token rows of captions in templates.

    The byte-pair encoding never crosses a space, so the tokens of a template and of a caption are computed once and
    joined: no text is tokenized during training.
    """

    def __init__(self, tokenizer: SimpleTokenizer, captions: Sequence[str], templates: Sequence[str], length: int):
        self._words = [tokenizer.encode(caption) for caption in captions]
        self._frames = [tuple(tokenizer.encode(part) for part in template.split("{}")) for template in templates]
        self._ends = (tokenizer.sot_token_id, tokenizer.eot_token_id)
        self._length = length

    def __call__(self, caption_ids: np.ndarray, template_ids: np.ndarray) -> Tensor:
        """(B, L) tokens, padded to the longest row of the batch only, because attention over padding costs time."""
        rows = [self._row(c, t) for c, t in zip(caption_ids.tolist(), template_ids.tolist(), strict=True)]
        tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
        return tokens

    def _row(self, caption: int, template: int) -> list[int]:
        start, end = self._ends
        before, after = self._frames[template]
        return [start, *(before + self._words[caption] + after)[: self._length - 2], end]


@dataclass(frozen=True)
class Style:
    """How images are augmented. There is no flip: "arrow left" is a class."""

    shift: float = 1.5  # pixels, either way
    scale: float = 0.06  # of the size, either way
    rotate: float = 0.0  # degrees, either way
    stroke: float = 0.0  # share of images with thinner or thicker strokes
    recolour: float = 0.0  # share of images with other colours

    def uniforms(self, seed: int, step: int, batch: int) -> Tensor:
        """All the random numbers of a global batch, (B, 14), in [0, 1)."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        return torch.rand(batch, 14, generator=generator)

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Augmented images, (B, 3, H, W) in [0, 1] -> (B, 3, H, W)."""
        u = uniforms.to(images.device)
        return self._recolour(self._strokes(self._move(images, u[:, :4]), u[:, 4:6]), u[:, 6:13])

    def _move(self, x: Tensor, u: Tensor) -> Tensor:
        s = 2 * u - 1  # (B, 4)
        angle, zoom = s[:, 0] * self.rotate * torch.pi / 180, 1 + s[:, 1] * self.scale
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        shift = s[:, 2:4] * self.shift * 2 / x.shape[-1]
        theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)

    def _strokes(self, x: Tensor, u: Tensor) -> Tensor:
        """Towards the brightest or the darkest of 3 x 3 pixels: designers differ in stroke weight."""
        amount = (self.stroke - u[:, 0]).clamp(min=0).sign() * u[:, 1]  # (B,)
        rows = amount.nonzero().squeeze(1)
        if len(rows) == 0:
            return x
        part, weight = x[rows], amount[rows].view(-1, 1, 1, 1)
        sign = torch.where(u[rows, 0] < self.stroke / 2, 1.0, -1.0).view(-1, 1, 1, 1)
        pooled = sign * F.max_pool2d(sign * part, 3, stride=1, padding=1)
        return x.index_copy(0, rows, part + weight * 0.7 * (pooled - part))

    def _recolour(self, x: Tensor, u: Tensor) -> Tensor:
        """Black becomes one colour and white another; in half of the images the two are just swapped."""
        chosen = (u[:, 0] < self.recolour).view(-1, 1, 1, 1)
        swapped = (u[:, 0] < self.recolour / 2).view(-1, 1, 1, 1).to(x.dtype)
        dark = swapped + (1 - swapped) * 0.5 * u[:, 1:4, None, None]
        light = (1 - swapped) * (0.6 + 0.4 * u[:, 4:7, None, None])
        return torch.where(chosen, dark + (light - dark) * x, x)


def image_tensor(corpus_images: np.ndarray, rows: np.ndarray, device: torch.device) -> Tensor:
    """The images of these rows, (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(corpus_images[rows]).to(device).permute(0, 3, 1, 2).float().div_(255)
