"""Pre-train mini-clip, the CLIP that comes with the package, on (icon, name) pairs.

    python tools/pretrain.py --corpus CORPUS --tag icons-large

One run per tag: icons-tiny, icons-small, icons-medium and icons-large see the first 1/27, 1/9, 1/3 and all of the
corpus, with the same number of pairs seen and otherwise equal. Cost: about 22 minutes of one CPU core per run
(400 pairs/s with bf16; two runs side by side on two cores beat one run on both), or 55 minutes when four runs share
two busy cores. Expected zero-shot top-1 (top-5) on Icons-LT's 718 classes: tiny 10 (22), small 19 (40), medium 27 (54),
large 30 (59) percent.

CORPUS is a folder with `pretrain_images.npy`, (N, 32, 32, 3) uint8, and `pretrain.tsv`, whose last column is the
caption. The result is a folder in open_clip's format. A killed run resumes from its last checkpoint when the same
command is given again. Several processes share the batch, and give the same result up to rounding:

    torchrun --nproc-per-node 4 tools/pretrain.py --corpus CORPUS --tag icons-large

Muon needs torch 2.9 or newer, `--optimizer adamw` does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from imbalance_vlm.training.devices import resolve_device
from imbalance_vlm.training.distributed.processes import join, process_group
from tools.pretraining import data
from tools.pretraining import model as modeling
from tools.pretraining.evaluate import TestSet, icons_lt, zero_shot

log = logging.getLogger("pretrain")


@dataclass(frozen=True)
class Recipe:
    """What the result depends on. Two runs with equal recipes and corpora give equal weights, bit for bit."""

    samples: int = 512_000  # pairs seen; may be raised on resuming before the rate decays
    batch: int = 256  # global: it is shared among the processes
    optimizer: str = "muon"  # muon (matrices of the blocks; AdamW for the rest) | adamw
    lr: float = 2e-3
    weight_decay: float = 0.05
    ns_steps: int = 4  # of Newton-Schulz; 3 to 5 give similar losses, each costs 3 % of a step
    warmup: int = 20_000  # pairs
    decay: float = 0.3  # share of the pairs over which the rate falls to zero, at the end
    max_scale: float = 100.0  # of the logits
    shift: float = data.Style.shift
    scale: float = data.Style.scale
    rotate: float = data.Style.rotate
    stroke: float = data.Style.stroke
    recolour: float = data.Style.recolour
    precision: str = "bf16"  # fp32 | bf16 (autocast; the weights stay fp32)
    seed: int = 0

    @property
    def steps(self) -> int:
        return self.samples // self.batch

    def rate(self, step: int) -> float:
        """Share of the learning rate at this step: up, constant, down."""
        seen = (step + 1) * self.batch
        down = (self.samples - step * self.batch) / max(self.decay * self.samples, 1)
        return max(0.0, min(1.0, seen / max(self.warmup, 1), down))


@dataclass(frozen=True)
class Devices:
    """This process among those that share the batch."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def find_devices() -> Devices:
    """This process and its device, connected with the others where `torchrun` started several."""
    device = join() or resolve_device("auto")
    group = process_group()
    return Devices(group.rank, group.size, device)


class Pretraining:
    """Model, optimizers and data of one run, at step `step`."""

    def __init__(
        self, recipe: Recipe, config: dict[str, Any], corpus: data.Corpus, bpe: Path, devices: Devices
    ) -> None:
        if recipe.batch % devices.world:
            raise ValueError(f"`batch` must be divisible by the {devices.world} processes, got {recipe.batch}")
        self.recipe, self.corpus, self.devices = recipe, corpus, devices
        self.model = modeling.build(config["model_cfg"], recipe.seed).to(devices.device).train()
        self.tokenizer = modeling.tokenizer_at(bpe, self.model.context_length)
        templates = config["train_templates"]
        self.captioner = data.Captioner(self.tokenizer, corpus.captions, list(templates), self.model.context_length)
        self.template_ends = torch.tensor(list(templates.values()), dtype=torch.float64).cumsum(0)  # (T,)
        self.style = data.Style(recipe.shift, recipe.scale, recipe.rotate, recipe.stroke, recipe.recolour)
        self.order = data.Order(len(corpus), recipe.batch, recipe.seed)
        self.mean, self.std = (
            torch.tensor(config["preprocess_cfg"][k], device=devices.device).view(3, 1, 1) for k in ("mean", "std")
        )
        self.optimizers = self._optimizers()
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, float]] = []

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        r = self.recipe
        named = list(self.model.named_parameters())
        blocks = [p for n, p in named if p.ndim == 2 and "resblocks" in n and r.optimizer == "muon"]
        in_blocks = {id(p) for p in blocks}
        matrices = [p for n, p in named if p.ndim >= 2 and id(p) not in in_blocks]
        vectors = [p for n, p in named if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": r.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        result: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=r.lr, betas=(0.9, 0.98), eps=1e-8)]
        if blocks:
            result.append(
                torch.optim.Muon(
                    blocks,
                    lr=r.lr,
                    weight_decay=r.weight_decay,
                    ns_steps=r.ns_steps,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        return result

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """This process's images (b, 3, H, W) and tokens (b, L), and the caption numbers of the whole batch, (B,)."""
        r, d = self.recipe, self.devices
        rows = self.order(step)
        part = slice(d.rank * r.batch // d.world, (d.rank + 1) * r.batch // d.world)
        images = data.image_tensor(self.corpus.images, rows[part], d.device)
        uniforms = self.style.uniforms(r.seed, step, r.batch)
        images = (self.style(images, uniforms[part]) - self.mean) / self.std
        captions = self.corpus.caption_ids[rows]
        drawn = uniforms[:, -1].double() * self.template_ends[-1]
        chosen = torch.searchsorted(self.template_ends, drawn, right=True)
        tokens = self.captioner(captions[part], chosen[part].numpy()).to(d.device)
        return images, tokens, torch.from_numpy(captions).to(d.device)

    def loss(self, step: int) -> Tensor:
        """The loss of the whole batch, the same in every process."""
        images, tokens, captions = self.batch(step)
        d = self.devices
        half = self.recipe.precision == "bf16"
        with torch.autocast(d.device.type, torch.bfloat16, enabled=half), modeling.plain_attention():
            image_features, text_features = (
                modeling.image_features(self.model, images),
                modeling.text_features(self.model, tokens),
            )
        scaled = (
            self.model.logit_scale.exp() * image_features
        )  # before gathering, so that its gradient is that of our rows too
        logits = modeling.gather(scaled, d.world, d.rank) @ modeling.gather(text_features, d.world, d.rank).T
        return modeling.multi_positive_loss(logits, captions)

    def advance(self) -> float:
        """One step of training; the loss before it."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.lr * self.recipe.rate(self.step)
            optimizer.zero_grad()
        loss = self.loss(self.step)
        loss.backward()
        modeling.sum_gradients(list(self.model.parameters()), self.devices.world)
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(self.recipe.max_scale))
        self.step += 1
        return loss.item()

    def state(self) -> dict[str, Any]:
        return {
            "recipe": dataclasses.asdict(self.recipe),
            "pairs": len(self.corpus),
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "torch_rng": torch.get_rng_state(),  # nothing draws from it today; dropout would
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self._check_recipe(state)
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]
        self.model.load_state_dict(state["model"])
        for optimizer, value in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(value)
        torch.set_rng_state(state["torch_rng"])

    def _check_recipe(self, state: dict[str, Any]) -> None:
        """Check that a checkpoint is of this recipe and corpus; the end may differ while the rate is still constant."""
        old, new = Recipe(**state["recipe"]), self.recipe
        same = dataclasses.replace(old, samples=new.samples, decay=new.decay) == new
        if not same or state["pairs"] != len(self.corpus):
            raise ValueError(
                f"the checkpoint must be of the same recipe and corpus, got {old} on {state['pairs']} pairs, but asked"
                f" for {new} on {len(self.corpus)}; give other `--checkpoints` or delete it"
            )
        last = max(0, state["step"] - 1)
        if old.rate(last) != new.rate(last):
            raise ValueError(f"`samples` and `decay` can change only before the decay, got step {state['step']}")


def save_checkpoint(run: Pretraining, path: Path) -> None:
    """Write a checkpoint; a kill while writing leaves the previous one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(run.state(), partial)
    os.replace(partial, path)


def train(run: Pretraining, checkpoint: Path, save_minutes: float, log_samples: int = 50_000) -> None:
    """Train until the samples of the recipe are seen; a checkpoint every `save_minutes` and at the end."""
    if checkpoint.exists():
        run.load_state(torch.load(checkpoint, map_location=run.devices.device, weights_only=True))
        log.info("resumed at %d pairs", run.step * run.recipe.batch)
    every = max(1, log_samples // run.recipe.batch)
    begun = saved = time.monotonic()
    before, total, count = run.seconds, torch.zeros(()), 0
    while run.step < run.recipe.steps:
        total, count = total + run.advance(), count + 1
        now = time.monotonic()
        run.seconds = before + now - begun
        if run.step % every == 0 or run.step == run.recipe.steps:
            run.curve.append({"samples": run.step * run.recipe.batch, "loss": round(float(total) / count, 5)})
            log.info("%s scale %.1f, %.0f s", run.curve[-1], run.model.logit_scale.exp().item(), run.seconds)
            total, count = torch.zeros(()), 0
        if run.devices.rank == 0 and (now - saved > 60 * save_minutes or run.step == run.recipe.steps):
            save_checkpoint(run, checkpoint)
            saved = now


def metadata(run: Pretraining, config: dict[str, Any], tag: str) -> dict[str, Any]:
    """Further keys of the configuration file; open_clip ignores those that it does not know."""
    return {
        "tag": tag,
        "pretrain_pairs": len(run.corpus),
        "pretrain_captions": len(run.corpus.captions),
        "samples_seen": run.step * run.recipe.batch,
        "zero_shot_templates": config["zero_shot_templates"],
        "bpe": f"../{modeling.BPE_NAME}",
    }


def finish(run: Pretraining, config: dict[str, Any], tag: str, out: Path, tests: TestSet | None) -> dict[str, Any]:
    """Export the model and write its record, with zero-shot accuracies if there is a test set."""
    about = metadata(run, config, tag)
    modeling.export(run.model, config, about, out / tag)
    record = about | {
        "recipe": dataclasses.asdict(run.recipe),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "wall_seconds": round(run.seconds),
        "hardware": f"{run.devices.world} process(es) of {torch.get_num_threads()} thread(s), {hardware()}",
        "loss": run.curve,
    }
    if tests is not None:
        templates = config["zero_shot_templates"]
        record["zero_shot"] = {
            "classes": len(tests.names),
            "images": len(tests.labels),
            "name_only": zero_shot(run.model, tests, run.tokenizer, ["{}"], run.mean, run.std),
            "templates": zero_shot(run.model, tests, run.tokenizer, templates, run.mean, run.std),
        }
        log.info("zero-shot %s", record["zero_shot"])
    modeling.write_json(out / tag / "pretraining.json", record)
    return record


def hardware() -> str:
    """The GPUs of this machine, or the number of its CPU cores."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of pretrain_images.npy and pretrain.tsv")
    parser.add_argument("--tag", choices=list(data.SIZES), required=True, help="how much of the corpus is used")
    parser.add_argument(
        "--config",
        type=Path,
        default=ROOT / "tools" / "pretraining" / "mini_clip.json",
        help="architecture and templates",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "imbalance_vlm" / "assets" / "mini_clip")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="from which killed runs resume")
    parser.add_argument("--save-minutes", type=float, default=2.0, help="time between checkpoints")
    parser.add_argument("--log-samples", type=int, default=50_000, help="pairs between points of the loss curve")
    parser.add_argument("--threads", type=int, help="CPU threads of a process; for this small model 1 is best")
    parser.add_argument("--export-only", action="store_true", help="export the last checkpoint as it is, and stop")
    for part in dataclasses.fields(Recipe):
        name = "--" + part.name.replace("_", "-")
        parser.add_argument(name, type=type(part.default), default=part.default, help=f"default {part.default}")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stdout)
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = Recipe(**{part.name: getattr(args, part.name) for part in dataclasses.fields(Recipe)})
    config, devices = modeling.read_config(args.config), find_devices()
    bpe = modeling.write_vocabulary(args.out / modeling.BPE_NAME, config["merges"])
    run = Pretraining(recipe, config, data.read_corpus(args.corpus, data.SIZES[args.tag]), bpe, devices)
    log.info("%s: %d pairs, %d captions", args.tag, len(run.corpus), len(run.corpus.captions))
    checkpoint = args.checkpoints / f"{args.tag}.pt"
    if args.export_only:
        run.load_state(torch.load(checkpoint, map_location=devices.device, weights_only=True))
    else:
        train(run, checkpoint, args.save_minutes, args.log_samples)
    if devices.rank == 0:
        finish(run, config, args.tag, args.out, icons_lt())


if __name__ == "__main__":
    main()
