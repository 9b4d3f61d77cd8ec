"""Run a trainer of released code on the problem of tests/parity, and keep its losses, rates and trained values.

The released code is not a part of the project: it is read from a checkout, whose commit is recorded.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from tests.parity import problem

DASSL = (
    "their CLIP reads mini-clip's vocabulary and contexts of 16 tokens; the trainer is made without its data; CPU in "
    "place of CUDA"
)
"""What is changed to run a trainer of Dassl."""

RECORDS = Path(problem.__file__).parent / "records"


class Recording:
    """What one repository computed, as the file `records/<name>.json`.

    Args:
        name: of the method in the project.
        repository: owner/name on GitHub.
        source: its checkout, or the folder in it that holds the code.
        file: the file of the method in the repository.
        commit: of the checkout; None to ask git.
        changes: what was changed in the released code to run it here, one sentence.
    """

    def __init__(
        self, name: str, repository: str, source: Path, file: str, commit: str | None = None, changes: str = DASSL
    ) -> None:
        self.name = name
        self.about: dict[str, Any] = {
            "repository": f"https://github.com/{repository}",
            "commit": commit or _git(source, "rev-parse", "HEAD"),
            "file": file,
            "torch": torch.__version__.partition("+")[0],
            "changes": changes,
        }
        self.runs: dict[str, Any] = {}

    def add(
        self,
        case: str,
        settings: Mapping[str, Any],
        losses: list[float],
        rates: list[float],
        values: Mapping[str, Tensor],
        differs: str = "",
    ) -> None:
        """Keep a training: its settings, the loss and rate of each step, and the trained values after the last.

        `differs` states in one sentence how ours differs on purpose, if it does.
        """
        checksums = {name: problem.checksum(value) for name, value in values.items()}
        run = {"settings": settings, "losses": losses, "rates": rates, "values": checksums}
        self.runs[case] = run | ({"differs": differs} if differs else {})
        print(f"{self.name}, {case}: " + (f"loss {losses[0]:.6f} -> {losses[-1]:.6f}" if losses else "no training"))

    def write(self) -> None:
        RECORDS.mkdir(exist_ok=True)
        text = json.dumps(self.about | {"runs": self.runs}, indent=1)
        (RECORDS / f"{self.name}.json").write_text(text + "\n")


def prepare_clip(source: Path, *folders: Path) -> None:
    """Let the released code import its own `clip`, which reads mini-clip's vocabulary and contexts of 16 tokens."""
    sys.path[:0] = [str(source), *map(str, folders)]
    sys.modules["torch.utils.tensorboard"] = ModuleType("torch.utils.tensorboard")
    sys.modules["torch.utils.tensorboard"].SummaryWriter = object  # type: ignore[attr-defined]  # nothing is logged
    make = LRScheduler.__init__  # Dassl passes a third argument, which torch no longer has

    def make_of_three(self: Any, optimizer: Any, last_epoch: int = -1, *verbose: bool) -> None:
        make(self, optimizer, last_epoch)

    LRScheduler.__init__ = make_of_three  # type: ignore[method-assign]
    without_cuda()
    shutil.copy(problem.VOCABULARY, source / "clip" / "bpe_simple_vocab_16e6.txt.gz")
    replace_in(source / "clip" / "model.py", {".half()": ""})
    from clip import clip

    clip.tokenize.__defaults__ = (problem.CONTEXT_LENGTH, True)  # long sentences are cut, as ours are


def replace_in(file: Path, replacements: Mapping[str, str]) -> None:
    """Replace strings in a file of the checkout, such as widths of CLIP ViT-B/16 and half precision."""
    text = file.read_text()
    for old, new in replacements.items():
        text = text.replace(old, new)
    file.write_text(text)


def released_module(path: Path, changes: Mapping[str, str] | None = None) -> Any:
    """A released source file as a module, with `changes` of its text, which must all occur."""
    text = path.read_text()
    for old, new in (changes or {}).items():
        assert old in text, f"{path} no longer has {old!r}"
        text = text.replace(old, new)
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    exec(compile(text, str(path), "exec"), module.__dict__)  # noqa: S102
    return module


def released_definitions(path: Path, names: Collection[str], offers: Mapping[str, Any]) -> dict[str, Any]:
    """Some functions and classes of a released file, with `offers` in place of its imports."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    defined = dict(offers)
    exec(compile(tree, str(path), "exec"), defined)  # noqa: S102
    return {name: defined[name] for name in names}


def train_classifier(
    parameters: Mapping[str, Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    features: Tensor,
    *,
    lr: float = 0.01,
    weight_decay: float = 0.0,
) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """20 steps of SGD with momentum .9 at a constant rate, for released code that has no loop apart from its data.

    Args:
        parameters: to train.
        loss: of features (8, d) and labels (8,).
        features: (40, d) of the problem's images.
        lr: rate.
        weight_decay: of all parameters.

    Returns:
        Losses, rates, and the trained parameters.
    """
    optimizer = torch.optim.SGD(parameters.values(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    batches = list(zip(features.split(problem.BATCH), problem.labels().split(problem.BATCH), strict=True))
    losses = []
    for rows, targets in batches * problem.EPOCHS:
        value = loss(rows, targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses, [lr] * len(losses), dict(parameters)


def start_all(parameters: Mapping[str, Tensor]) -> None:
    """Set each value to `problem.start`, by its place."""
    with torch.no_grad():
        for number, value in enumerate(parameters.values(), start=1):
            value.copy_(problem.start(*value.shape, seed=number))


def without_cuda() -> None:
    """Let released code that was written for a GPU run on the CPU."""
    for kind in (Tensor, nn.Module):
        kind.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    setattr(torch.cuda, "FloatTensor", torch.FloatTensor)  # noqa: B010
    setattr(torch.cuda, "DoubleTensor", torch.DoubleTensor)  # noqa: B010


def released_clip(build: Callable[..., nn.Module], *more: Any) -> nn.Module:
    """The model of the problem, made by the released `build_model`."""
    model = build(problem.weights(), *more)
    return model.float().eval()


def dassl_config(changes: Mapping[str, Mapping[str, Any]]) -> Any:
    """Dassl's configuration for the problem: SGD, one epoch of constant warm-up, float32, with `changes`."""
    from dassl.config import get_cfg_default
    from train import extend_cfg

    config = get_cfg_default()
    extend_cfg(config)
    optim = {"NAME": "sgd", "LR": 0.02, "MAX_EPOCH": problem.EPOCHS, "LR_SCHEDULER": "cosine", "WARMUP_EPOCH": 1}
    optim |= {"WARMUP_TYPE": "constant", "WARMUP_CONS_LR": 1e-5}
    settings: dict[str, Mapping[str, Any]] = {"OPTIM": optim, "INPUT": {"SIZE": (32, 32)}}
    for section, values in [*settings.items(), *changes.items()]:
        node = config
        for key in filter(None, section.split(".")):
            node = node[key]
        for key, value in values.items():
            node[key] = value
    config.DATASET.NAME = "Caltech101"
    for section in config.TRAINER.values():
        if hasattr(section, "PREC"):
            section.PREC = "fp32"
    config.freeze()
    return config


def run_dassl_trainer(
    recording: Recording,
    case: str,
    module: Any,
    trainer_type: Any,
    changes: Mapping[str, Mapping[str, Any]],
    *,
    start: Callable[[Any], None] | None = None,
    loss: Callable[[Mapping[str, float]], float] = lambda summary: summary["loss"],
    build: Callable[..., nn.Module] | None = None,
    after_epoch: Callable[[Any], None] | None = None,
) -> Any:
    """Train 20 steps with a released Dassl trainer's own `build_model` and `forward_backward`.

    Args:
        recording: keeps the training.
        case: name of the training in the record.
        module: the released module of the trainer.
        trainer_type: the released trainer.
        changes: configuration, by section.
        start: sets the start of the trained values; by default each is `problem.start` of its shape.
        loss: the loss in the released summary of a step.
        build: makes the CLIP model from the configuration; by default `module.clip.build_model` of the weights.
        after_epoch: called with the trainer after each epoch.

    Returns:
        The trainer.
    """
    config = dassl_config(changes)
    trainer = object.__new__(trainer_type)
    for name, value in {"cfg": config, "device": torch.device("cpu"), "epoch": 0}.items():
        setattr(trainer, name, value)
    from collections import OrderedDict

    trainer._models, trainer._optims, trainer._scheds = OrderedDict(), OrderedDict(), OrderedDict()
    trainer.dm = SimpleNamespace(
        dataset=SimpleNamespace(classnames=list(problem.NAMES)), num_classes=len(problem.NAMES)
    )
    module.load_clip_to_cpu = build or (lambda *_: released_clip(module.clip.build_model))
    trainer.build_model()
    trained = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    with torch.no_grad():
        if start is not None:
            start(trainer.model)
        else:
            for number, value in enumerate(trained.values(), start=1):
                value.copy_(problem.start(*value.shape, seed=number))
    trainer.model.train()
    losses, rates = [], []
    trainer.num_batches = problem.STEPS_PER_EPOCH
    for number, (pixels, targets) in enumerate(problem.batches()):
        trainer.epoch, trainer.batch_idx = divmod(number, problem.STEPS_PER_EPOCH)
        rates.append(trainer.optim.param_groups[0]["lr"])
        summary = trainer.forward_backward({"img": pixels, "label": targets})
        losses.append(float(loss(summary)))
        if after_epoch is not None and trainer.batch_idx == trainer.num_batches - 1:
            after_epoch(trainer)
    settings = {
        f"{section}.{key}": value
        for section, values in changes.items()
        for key, value in values.items()
        if not str(value).startswith("/")
    }
    recording.add(case, settings, losses, rates, trained)
    return trainer


def _git(source: Path, *arguments: str) -> str:
    result = subprocess.run(["git", "-C", str(source), *arguments], capture_output=True, text=True, check=True)
    return result.stdout.strip()
