"""A step of prompt tuning, the usual way and with each exact saving added in turn: `imbalance-vlm bench text`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch.nn import functional as F

from imbalance_vlm.benchmarks.measurement import check_at_least_one, synchronize
from imbalance_vlm.data.icons import ASSETS
from imbalance_vlm.data.preprocessing import Preprocessing
from imbalance_vlm.encoders.base import fixed_seed
from imbalance_vlm.encoders.open_clip import OpenClipEncoder
from imbalance_vlm.encoders.prompted_text import PromptedText
from imbalance_vlm.errors import InputError
from imbalance_vlm.progress import note
from imbalance_vlm.training.devices import resolve_device

WAYS: dict[str, list[str]] = {
    "whole length, all at once": [],
    "cut": ["cut"],
    "cut + prefix": ["cut", "prefix"],
    "cut + prefix + chunks": ["cut", "prefix", "chunks"],
}
SUFFIXES = (
    "",
    "outline",
    "symbol of a large city",
    "with a red border",
    "in winter",
    "variegated",
    "filled",
    "of the northern hemisphere",
    "seen from above",
    "pair",
    "made of wood",
    "for small children",
)
"""Appended to the class names of Icons-LT they make 8,616 names of 1 to 9 words."""

IMAGES = 32  # in the batch of cached image features
WARM_SECONDS = 20.0  # a shorter step is repeated and the best time counts


def names_for(count: int, names: Sequence[str] | None = None) -> list[str]:
    """Class names, taken at equal distances from `names`, or made from those of Icons-LT.

    Raises:
        InputError: fewer names than classes.

    >>> len(set(names_for(8142)))
    8142
    """
    if names is None:
        icons = json.loads((ASSETS / "icons_lt" / "classes.json").read_text(encoding="utf-8"))["names"]
        names = [f"{name} {suffix}".strip() for name in icons for suffix in SUFFIXES]
    if not 1 <= count <= len(names):
        raise InputError(f"`classes` must be from 1 to the number of names, {len(names)}, got {count}; give more names")
    return [names[number * len(names) // count] for number in range(count)]


def read_names(path: Path) -> list[str]:
    """The class names in a text file, one per line; empty lines are skipped.

    Raises:
        InputError: a file that cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`names` must be a UTF-8 text file of class names, got {path}: {error}") from error
    return [name for line in lines if (name := line.strip())]


def bench_text(
    classes: Sequence[int] = (100, 1000, 8142),
    contexts: Sequence[int] = (4, 16),
    names: Path | None = None,
    model: str = "ViT-B-16",
    memory_gb: float = 1.0,
    limit_gb: float = 16.0,
    device: str = "cpu",
) -> str:
    """A training step (text features of all classes, cross-entropy of 32 images, gradient of the context) by each way.

    Every measurement has its own process, with the text tower of `model` at random weights. The memory of a step is the
    rise of the process's peak over what it was with the tower loaded and a step over two classes done; on a GPU, that
    of torch's allocations.

    Args:
        classes: numbers of classes; each is measured with each number of context tokens.
        contexts: numbers of learned context tokens.
        names: a text file of class names, one per line; by default names are made from those of Icons-LT.
        model: a CLIP architecture of open_clip; its weights are random.
        memory_gb: limit of the chunks, in GiB.
        limit_gb: a way that would keep more than this for the backward pass, in GiB, is not run.
        device: "auto" (a GPU where there is one), "cpu", "cuda", ...

    Raises:
        InputError: fewer names than classes, an unknown model, or a measurement that failed.
    """
    check_at_least_one(classes=min(classes), contexts=min(contexts))
    torch_device = resolve_device(device)
    text_tower_config(model)
    class_names = None if names is None else read_names(names)
    names_of = {count: names_for(count, class_names) for count in classes}
    lines = [
        f"one training step over the text tower of {model} ({torch_device}, random weights, fp32); "
        f"chunks: {memory_gb:g} GiB",
        "x: relative to the usual way; process: peak memory with Python, torch and the tower",
    ]
    for count in classes:
        for n_ctx in contexts:
            lines += ["", f"{count} classes, {n_ctx} context tokens"]
            usual: dict[str, float] | None = None
            for way, savings in WAYS.items():
                note(f"{count} classes, {n_ctx} context tokens: {way} ...")
                measured = _measured(
                    names=names_of[count],
                    n_ctx=n_ctx,
                    savings=savings,
                    model=model,
                    memory_gb=memory_gb,
                    limit_gb=limit_gb,
                    device=str(torch_device),
                )
                lines.append(_line(way, measured, usual, limit_gb))
                if "seconds" in measured and not savings:
                    usual = measured
    return "\n".join(lines) + "\n"


def _line(way: str, measured: dict[str, float], usual: dict[str, float] | None, limit_gb: float) -> str:
    """A line of the report; with ratios to the usual way where that was measured before."""
    if "seconds" not in measured:
        return f"  {way:26} does not fit in {limit_gb:g} GiB (needs about {measured['needs_gb']:.0f} GiB)"
    time_ratio = memory_ratio = ""
    if usual is not None:
        time_ratio = f" ({usual['seconds'] / measured['seconds']:.1f}x less)"
        memory_ratio = f" ({usual['step_gb'] / max(measured['step_gb'], 1e-3):.1f}x less)"
    return (
        f"  {way:26} {measured['seconds']:8.2f} s{time_ratio:13} "
        f"{measured['step_gb']:7.2f} GiB per step{memory_ratio:13} {measured['process_gb']:6.2f} GiB process"
    )


def _measured(**case: Any) -> dict[str, float]:
    """One case in a new process, because the peak memory of a process never falls."""
    run = subprocess.run(
        [sys.executable, "-m", "imbalance_vlm.benchmarks.text"], input=json.dumps(case), capture_output=True, text=True
    )
    if run.returncode != 0:
        reason = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}, perhaps out of memory"])[-1]
        raise InputError(f"the measurement failed: {reason}; choose fewer `classes` or a smaller `limit_gb`")
    measured: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return measured


def measure(
    names: list[str], n_ctx: int, savings: list[Any], model: str, memory_gb: float, limit_gb: float, device: str
) -> dict[str, float]:
    """Time and memory of one case in this process; beyond the limit, only the memory that it would need."""
    torch_device = resolve_device(device)
    encoder = _text_tower(model).to(torch_device)
    text = PromptedText(encoder, names, memory_gb=memory_gb, savings=savings)
    needs = text.kept_bytes(n_ctx) / 2**30
    if needs > limit_gb:
        return {"needs_gb": needs}
    context = (0.02 * torch.randn(n_ctx, text.width)).to(torch_device).requires_grad_()
    images = F.normalize(torch.randn(IMAGES, text(context.detach(), rows=torch.arange(1)).shape[1]), dim=-1)
    images = images.to(torch_device)

    def step(learner: PromptedText) -> float:
        begun = time.monotonic()
        logits = 100 * images @ learner(context).T
        targets = torch.arange(IMAGES, device=torch_device) % logits.shape[1]
        F.cross_entropy(logits, targets).backward()
        synchronize(torch_device)
        return time.monotonic() - begun

    step(PromptedText(encoder, names[:2], savings=savings))
    before = _peak_gb(torch_device)
    seconds = step(text)
    repeats = 2 if seconds < WARM_SECONDS else 0
    seconds = min([seconds, *(step(text) for _ in range(repeats))])
    peak = _peak_gb(torch_device)
    return {"needs_gb": needs, "seconds": seconds, "step_gb": peak - before, "process_gb": peak}


def text_tower_config(model: str) -> dict[str, Any]:
    """The configuration of a CLIP architecture of open_clip.

    Raises:
        InputError: open_clip does not have it, or it is not a CLIP.
    """
    config: dict[str, Any] | None = open_clip.get_model_config(model)
    if config is None or "multimodal_cfg" in config:
        raise InputError(f"`model` must be a CLIP architecture of open_clip.list_models(), got {model!r}")
    return config


def _text_tower(model: str) -> OpenClipEncoder:
    """An encoder with the text tower of an open_clip architecture and a tiny image tower."""
    config = text_tower_config(model)
    make = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    tiny = {"image_size": 8, "patch_size": 8, "layers": 1, "width": 64}
    with fixed_seed():
        net = make(**{**config, "vision_cfg": tiny})
    tokenizer = open_clip.get_tokenizer(model)
    preprocessing = Preprocessing((8, 8), mean=(0, 0, 0), std=(1, 1, 1))
    return OpenClipEncoder(net, preprocessing, tokenizer, model, "random", None, "random")


def _peak_gb(device: torch.device) -> float:
    """The peak memory of this process in GiB; on a GPU, that of torch's allocations."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # Windows does not have it

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    print(json.dumps(measure(**json.load(sys.stdin))))
