"""The model of `tools/pretrain.py`: vocabulary, towers, loss and export, all in open_clip's own classes and format."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from safetensors.torch import save
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

BPE_NAME = "bpe_4k.txt.gz"


def read_config(path: Path) -> dict[str, Any]:
    """The architecture and templates in a JSON file."""
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def write_vocabulary(path: Path, merges: int) -> Path:
    """Write the first `merges` byte-pair merges of open_clip; the same bytes every time."""
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[: merges + 1]  # the first line is a comment
    path.parent.mkdir(parents=True, exist_ok=True)
    new = gzip.compress("\n".join(lines).encode(), compresslevel=9, mtime=0)
    if not path.exists() or path.read_bytes() != new:
        _write_atomically(path, new)
    return path


def build(model_cfg: dict[str, Any], seed: int) -> CLIP:
    """A CLIP with random weights that depend on the seed alone."""
    torch.manual_seed(seed)
    return CLIP(**model_cfg)


def image_features(model: CLIP, images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, D), of length one."""
    return F.normalize(model.visual(images).float(), dim=-1)


def text_features(model: CLIP, tokens: Tensor) -> Tensor:
    """(B, L) -> (B, D), of length one. As `encode_text`, but for rows shorter than the context."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]  # (B, L, W)
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    x = x[torch.arange(len(x), device=x.device), tokens.argmax(-1)]  # <end_of_text> has the highest number
    return F.normalize((x @ model.text_projection).float(), dim=-1)


def plain_attention() -> Any:
    """Attention without the fused kernel, whose backward pass on a CPU takes longer for 17 tokens than all matrix
    products together (455 pairs/s without it, 320 with it, on one core in bf16)."""
    return sdpa_kernel([SDPBackend.MATH])


def multi_positive_loss(logits: Tensor, captions: Tensor) -> Tensor:
    """Contrastive loss (CLIP, arXiv:2103.00020) in which all pairs with an equal caption are positives.

    Row i spreads its target evenly over the columns whose caption is that of row i (UniCL, arXiv:2204.03610); the
    loss is the mean of both directions. With distinct captions it is CLIP's.

    logits: (B, B), images by texts, already scaled; captions: (B,) caption numbers.
    """
    same = (captions[:, None] == captions[None, :]).to(logits.dtype)  # (B, B)
    targets = same / same.sum(1, keepdim=True)  # `same` is symmetric, so both directions share the targets
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def gather(local: Tensor, world: int, rank: int) -> Tensor:
    """Every process's rows, in the order of the ranks; gradients flow into our own rows.

    All processes compute the same loss, so the gradient of our rows is complete, and the sum of the parameter
    gradients over processes is the gradient of the whole batch.
    """
    if world == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(world)]
    dist.all_gather(parts, local.detach().contiguous())
    return torch.cat([*parts[:rank], local, *parts[rank + 1 :]])


def sum_gradients(parameters: Sequence[Tensor], world: int) -> None:
    """Replace the gradients by their sums over the processes."""
    if world == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, new in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(new.view_as(gradient))


def export(model: CLIP, config: dict[str, Any], metadata: dict[str, Any], folder: Path) -> None:
    """Write a folder that `open_clip.create_model_and_transforms("local-dir:FOLDER")` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().half().contiguous() for name, value in model.state_dict().items()}
    _write_atomically(folder / "open_clip_model.safetensors", save(state))
    content = {key: config[key] for key in ("model_cfg", "preprocess_cfg")} | metadata
    write_json(folder / "open_clip_config.json", content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically."""
    _write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def _write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def tokenizer_at(path: Path, context_length: int) -> SimpleTokenizer:
    """open_clip's tokenizer with the vocabulary in a file."""
    return SimpleTokenizer(bpe_path=str(path), context_length=context_length)
