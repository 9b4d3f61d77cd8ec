"""What a step of prompt tuning costs, in time and memory, the usual way and with each exact saving added in turn."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from imbalance_vlm.errors import InputError
from imbalance_vlm.progress import note

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
"""Behind the names of Icons-LT they give 8,616 names of 1 to 9 words."""

IMAGES = 32  # in the batch of cached image features
WARM_SECONDS = 20.0  # a shorter step is repeated and the best time counts


def names_for(count: int, given: Sequence[str] | None = None) -> list[str]:
    """Class names, spread over the `given` ones, or made from those of Icons-LT.

    Raises:
        InputError: fewer names than classes.

    >>> len(set(names_for(8142)))
    8142
    """
    from imbalance_vlm.data.icons_lt import ASSETS

    if given is None:
        icons = json.loads((ASSETS / "classes.json").read_text(encoding="utf-8"))["names"]
        given = [f"{name} {suffix}".strip() for name in icons for suffix in SUFFIXES]
    if not 1 <= count <= len(given):
        raise InputError(f"`classes` must be from 1 to the number of names, {len(given)}, got {count}; give more names")
    return [given[place * len(given) // count] for place in range(count)]


def bench_text(
    classes: Sequence[int],
    contexts: Sequence[int],
    names: Sequence[str] | None = None,
    model: str = "ViT-B-16",
    memory_gb: float = 1.0,
    limit_gb: float = 16.0,
    device: str = "cpu",
) -> str:
    """A training step (text features of all classes, cross-entropy of 32 images, gradient of the context) by each way.

    Every measurement has a process of its own, with the text tower of `model` at random weights. The memory of a step
    is the rise of the process's peak over what it had with the tower loaded and a step over two classes done; on a GPU,
    of what torch has allocated there.

    Args:
        classes, contexts: numbers of classes and of context tokens; all pairs are measured.
        names: class names to spread over; None makes some from those of Icons-LT.
        memory_gb: limit of the chunks, in GiB.
        limit_gb: a way whose backward pass would keep more, by arithmetic, is not run.
    """
    lines = [
        f"one training step over the text tower of {model} ({device}, random weights, fp32); chunks: {memory_gb:g} GiB",
        "x: of the usual way's; process: all the memory it ever had, with Python, torch and the tower",
    ]
    for count in classes:
        for n_ctx in contexts:
            lines += ["", f"{count} classes, {n_ctx} context tokens"]
            usual: dict[str, float] | None = None
            for way, savings in WAYS.items():
                note(f"{count} classes, {n_ctx} context tokens: {way} ...")
                found = _measured(
                    names=names_for(count, names),
                    n_ctx=n_ctx,
                    savings=savings,
                    model=model,
                    memory_gb=memory_gb,
                    limit_gb=limit_gb,
                    device=device,
                )
                if "seconds" in found and not savings:
                    usual = found
                lines.append(_line(way, found, usual, limit_gb))
    return "\n".join(lines) + "\n"


def _line(way: str, found: dict[str, float], usual: dict[str, float] | None, limit_gb: float) -> str:
    if "seconds" not in found:
        return f"  {way:26} does not fit in {limit_gb:g} GiB (needs about {found['needs_gb']:.0f} GiB)"
    time_ratio = memory_ratio = ""
    if usual is not None and found is not usual:
        time_ratio = f" ({usual['seconds'] / found['seconds']:.1f}x less)"
        memory_ratio = f" ({usual['step_gb'] / max(found['step_gb'], 1e-3):.1f}x less)"
    return (
        f"  {way:26} {found['seconds']:8.2f} s{time_ratio:13} {found['step_gb']:7.2f} GiB a step{memory_ratio:13}"
        f" {found['process_gb']:6.2f} GiB process"
    )


def _measured(**case: Any) -> dict[str, float]:
    """One case in a process of its own: the peak of a process never falls again."""
    run = subprocess.run(
        [sys.executable, "-m", "imbalance_vlm.benchmarks.text"], input=json.dumps(case), capture_output=True, text=True
    )
    if run.returncode != 0:
        reason = (run.stderr.strip().splitlines() or [f"it ended with {run.returncode}, out of memory perhaps"])[-1]
        raise InputError(f"the measurement failed: {reason}; choose fewer `classes` or a smaller `limit_gb`")
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def measure(
    names: list[str], n_ctx: int, savings: list[Any], model: str, memory_gb: float, limit_gb: float, device: str
) -> dict[str, float]:
    """Time and memory of one case in this process, or what it would need beyond the limit."""
    import torch
    from torch.nn import functional as F

    from imbalance_vlm.encoders.prompted_text import PromptedText

    encoder = _text_tower(model).to(device)
    text = PromptedText(encoder, names, memory_gb=memory_gb, savings=savings)
    needs = text.kept_bytes(n_ctx) / 2**30
    if needs > limit_gb:
        return {"needs_gb": needs}
    context = (0.02 * torch.randn(n_ctx, text.width)).to(device).requires_grad_()
    images = F.normalize(torch.randn(IMAGES, text(context.detach(), rows=torch.arange(1)).shape[1]), dim=-1).to(device)

    def step(learner: PromptedText) -> float:
        begun = time.monotonic()
        logits = 100 * images @ learner(context).T
        targets = torch.arange(IMAGES, device=device) % logits.shape[1]
        F.cross_entropy(logits, targets).backward()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.monotonic() - begun

    step(PromptedText(encoder, names[:2], savings=savings))
    before = _peak_gb(device)
    seconds = step(text)
    repeats = 2 if seconds < WARM_SECONDS else 0
    seconds = min([seconds, *(step(text) for _ in range(repeats))])
    peak = _peak_gb(device)
    return {"needs_gb": needs, "seconds": seconds, "step_gb": peak - before, "process_gb": peak}


def _text_tower(model: str) -> Any:
    """An encoder with the text tower of an open_clip architecture; its image tower is a speck."""
    import open_clip

    from imbalance_vlm.data.preprocessing import Preprocessing
    from imbalance_vlm.encoders.base import fixed_seed
    from imbalance_vlm.encoders.open_clip import OpenClipEncoder

    config = open_clip.get_model_config(model)
    if config is None or "multimodal_cfg" in config:
        raise InputError(f"`model` must be a CLIP architecture of open_clip.list_models(), got {model!r}")
    make = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    speck = {"image_size": 8, "patch_size": 8, "layers": 1, "width": 64}
    with fixed_seed():
        net = make(**{**config, "vision_cfg": speck})
    tokenizer = open_clip.get_tokenizer(model)
    preprocessing = Preprocessing((8, 8), mean=(0, 0, 0), std=(1, 1, 1))
    return OpenClipEncoder(net, preprocessing, tokenizer, model, "random", None, "random")


def _peak_gb(device: str) -> float:
    """The most memory that this process has had, in GiB; on a GPU, what torch has allocated there."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    print(json.dumps(measure(**json.load(sys.stdin))))
