"""A tiny open_clip model in float64, prompt heads on it, and open_clip's own encoding of the same prompts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.encoders.open_clip import OpenClipEncoder
from imbalance_vlm.encoders.prompt_layout import Position
from imbalance_vlm.heads.base import Head
from imbalance_vlm.tuning.base import TuningContext
from imbalance_vlm.tuning.prompt.base import PromptHead
from tests.tuning.prompt.contexts import TEXT, TOKENIZER, make_context, no_plain_head, objective_of, tuning_of

VISION = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
NAMES = ("cat", "sports car", "red tailed black cockatoo")
NOVEL = ("dog", "tea pot")


@functools.cache
def encoder() -> Any:
    """A tiny open_clip model in float64, with weights large enough for every token to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = open_clip.CLIP(16, VISION, TEXT).double()
        for parameter in module.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        module.logit_scale.data.fill_(2.0)
    tiny = OpenClipEncoder(module, cast(Any, None), TOKENIZER, "tiny", "random", None, "")
    tiny._widths = {"embedding": 16}  # it would be asked with an image in float32
    return tiny


def context_of(**changes: Any) -> TuningContext:
    return make_context({"encoder": encoder(), "class_names": NAMES, "epochs": 2} | changes)


def head_of(name: str = "coop", context: TuningContext | None = None, **settings: Any) -> PromptHead:
    torch.manual_seed(3)
    settings = {"n_ctx": 3, "init": None} | settings
    head: PromptHead = tuning_of(name, **settings).head(context or context_of(), no_plain_head)
    return head


def images(count: int = 5) -> tuple[Tensor, Tensor]:
    rows = torch.randn(count, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return rows, torch.arange(count) % len(NAMES)


def text_by_open_clip(names: Sequence[str], contexts: Tensor, position: Position = "end") -> Tensor:
    """`encode_text` with the rows of `contexts` (C, n, w) in place of the embeddings of n stand-ins, unit rows."""
    n, ids, places = contexts.shape[1], [], []
    for name in names:
        words, both = TOKENIZER.encode(name), TOKENIZER.encode(name + ".")
        before = {"end": n, "middle": n // 2, "front": 0}[position]
        row = [None] * before + both[: len(words)] + [None] * (n - before) + both[len(words) :]
        row = [TOKENIZER.sot_token_id, *row, TOKENIZER.eot_token_id]
        places.append([place for place, token in enumerate(row) if token is None])
        ids.append([TOKENIZER.encode("x")[0] if token is None else token for token in row] + [0] * (16 - len(row)))
    module = encoder().module

    def insert_contexts(_: Any, __: Any, embedded: Tensor) -> Tensor:
        rows = [list(row) for row in embedded]
        for row, where, tokens in zip(rows, places, contexts, strict=True):
            for place, token in zip(where, tokens, strict=True):
                row[place] = token
        return torch.stack([torch.stack(row) for row in rows])

    handle = module.token_embedding.register_forward_hook(insert_contexts)
    try:
        return F.normalize(module.encode_text(torch.tensor(ids)), dim=-1)
    finally:
        handle.remove()


def cosines(features: Tensor, text: Tensor) -> Tensor:
    """exp(logit_scale) times the cosine, pair by pair."""
    scale = float(np.exp(2.0))
    rows = [[scale * (f @ t) / (f.norm() * t.norm()) for t in text] for f in features]
    return torch.stack([torch.stack(row) for row in rows])


def objective(name: str, head: Head, loss: Any = None, **settings: Any) -> Objective:
    return objective_of(tuning_of(name, **settings), head, context_of(), loss)


def sentences(names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Mean of the unit features of a name in each sentence, unit rows."""
    rows = []
    for name in names:
        parts = [encoder().module.encode_text(TOKENIZER([sentence.format(name)]))[0] for sentence in templates]
        rows.append(F.normalize(sum((F.normalize(part, dim=-1) for part in parts), torch.zeros(16)), dim=-1))
    return torch.stack(rows).detach()
