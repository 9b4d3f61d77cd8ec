"""Record 20 steps of the released losses for long tails: python -m tools.parity.long_tailed_losses METHOD SOURCE

METHOD is one of METHODS, SOURCE a checkout of its repository. A classifier is trained on fixed image features.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm import create_head
from tests.parity import problem
from tools.parity.released import Recording, released_module, start_all, train_classifier, without_cuda

CLASSES = len(problem.NAMES)
SHORTER = {
    "epoch // 160": "epoch // 2",
    "epoch > 180": "epoch > 3",
    "epoch > 160": "epoch > 2",
    "epoch <= 5": "epoch <= 0",
}
SHORTER_TEXT = (
    "four epochs in place of 200: what happens at 160 and 180 happens at 2 and 3, without the five epochs of warm-up; "
    "a classifier of fixed features in place of the network; CPU in place of CUDA"
)


class Normed(nn.Module):
    """The network of LDAM's and VS's training: a classifier of fixed features."""

    def __init__(self, layer: nn.Module, with_features: bool) -> None:
        super().__init__()
        self.layer = layer
        self.with_features = with_features

    def forward(self, features: Tensor) -> Any:
        logits = self.layer(features)
        return (logits, features) if self.with_features else logits


def cifar_training(module: Any, resnet: Any, features: Tensor, with_features: bool, **settings: Any) -> Any:
    """Run the released `main_worker`, which LDAM and VS share, on the problem."""
    kept: dict[str, Any] = {"losses": [], "rates": []}

    def build(num_classes: int, use_norm: bool) -> nn.Module:
        layer = resnet.NormedLinear(features.shape[1], CLASSES) if use_norm else nn.Linear(features.shape[1], CLASSES)
        kept["values"] = dict(layer.named_parameters())
        start_all(kept["values"])
        return Normed(layer, with_features)

    def watched(released: type) -> type:
        class Watched(released):  # type: ignore[misc]
            def forward(self, logits: Tensor, target: Tensor) -> Tensor:
                loss: Tensor = super().forward(logits, target)
                kept["losses"].append(float(loss.detach()))
                kept["rates"].append(kept["optimizer"].param_groups[0]["lr"])
                return loss

        return Watched

    adjust = module.adjust_learning_rate

    def adjusted(optimizer: Any, epoch: int, args: Any) -> None:
        kept["optimizer"] = optimizer
        adjust(optimizer, epoch, args)

    batches = list(zip(features.split(problem.BATCH), problem.labels().split(problem.BATCH), strict=True))
    dataset = SimpleNamespace(get_cls_num_list=lambda: list(problem.COUNTS))
    original = {name: getattr(module, name) for name in vars(module)}
    module.models = ModuleType("models")
    module.models.problem = build
    module.IMBALANCECIFAR10 = lambda **_: dataset
    module.datasets, module.SummaryWriter = MagicMock(), MagicMock()
    module.validate, module.save_checkpoint, module.adjust_learning_rate = lambda *_: 0.0, MagicMock(), adjusted
    for name in ("LDAMLoss", "VSLoss"):
        if hasattr(module, name):
            setattr(module, name, watched(getattr(module, name)))
    torch.utils.data.DataLoader = lambda *_, **__: batches  # type: ignore[misc,assignment]
    args = {"dataset": "cifar10", "arch": "problem", "imb_type": "exp", "imb_factor": 0.01, "rand_number": 0}
    args |= {
        "epochs": problem.EPOCHS,
        "start_epoch": 0,
        "lr": 0.02,
        "momentum": 0.9,
        "weight_decay": 2e-4,
        "resume": "",
    }
    args |= {"workers": 0, "batch_size": problem.BATCH, "print_freq": 1000, "root_log": tempfile.mkdtemp()}
    args |= {"store_name": "", "seed": None, "exp_str": ""}
    positional = [MagicMock()] if with_features else []
    if with_features:
        module.main_worker(None, argparse.Namespace(**args | settings), *positional)
    else:
        module.main_worker(None, 0, argparse.Namespace(**args | settings))
    vars(module).update(original)
    return kept["losses"], kept["rates"], kept["values"]


def ldam(source: Path, features: Tensor) -> None:
    sys.modules["tensorboardX"] = MagicMock()
    module = released_module(source / "cifar_train.py", SHORTER)
    from models import resnet_cifar

    recording = Recording("ldam", "kaidic/LDAM-DRW", source, "losses.py", changes=SHORTER_TEXT)
    for rule in ("None", "Reweight", "DRW"):
        settings = {"loss_type": "LDAM", "train_rule": rule}
        recording.add(f"rule {rule}", settings, *cifar_training(module, resnet_cifar, features, False, **settings))
    recording.write()


def vs(source: Path, features: Tensor) -> None:
    sys.modules["tensorboardX"] = MagicMock()
    sys.path.insert(0, str(source / "class_imbalance"))
    module = released_module(source / "class_imbalance" / "train.py", SHORTER)
    import models as resnet

    file = "class_imbalance/losses.py"
    recording = Recording("vs", "orparask/VS-Loss", source, file, changes=SHORTER_TEXT)
    for loss in ("VS", "LA", "CDT"):
        settings = {"loss_type": loss, "train_rule": "None", "gamma": 0.3, "tau": 1.0}
        recording.add(loss, settings, *cifar_training(module, resnet, features, True, **settings))
    recording.write()


def lade(source: Path, features: Tensor) -> None:
    counts = Path(tempfile.mkdtemp()) / "train.txt"
    lines = [f"image {label}" for label, count in enumerate(problem.COUNTS) for _ in range(count)]
    counts.write_text("\n".join(lines))
    recording = Recording("lade", "hyperconnect/LADE", source, "loss/LADELoss.py", changes="CPU in place of CUDA")
    prior = released_module(source / "loss" / "PriorCELoss.py").create_loss(CLASSES, prior_txt=str(counts))
    for lam, alpha in ((0.1, 0.05), (0.01, 0.1)):
        term = released_module(source / "loss" / "LADELoss.py")
        term = term.create_loss(CLASSES, prior_txt=str(counts), remine_lambda=lam)
        layer = nn.Linear(features.shape[1], CLASSES)
        values = dict(layer.named_parameters())
        start_all(values)

        def loss(rows: Tensor, targets: Tensor, layer: Any = layer, term: Any = term, alpha: float = alpha) -> Tensor:
            logits = layer(rows)
            value: Tensor = prior(logits, targets) + alpha * term(logits, targets)
            return value

        settings = {"remine_lambda": lam, "weight of LADELoss": alpha}
        recording.add(f"lambda {lam}, weight {alpha}", settings, *train_classifier(values, loss, features))
    recording.write()


def contrastive(
    name: str,
    source: Path,
    features: Tensor,
    cases: dict[str, dict[str, Any]],
    changes: str,
    folder: str,
    batch_keys: bool,
) -> None:
    """PaCo and GPaCo: the head, its embeddings and the queue are the project's, the loss is theirs."""
    file = f"{folder}/LT/losses.py"
    module = released_module(source / file, {"torch.device('cuda'))": "torch.device('cpu'))"})
    recording = Recording(name, "dvlab-research/Parametric-Contrastive-Learning", source, file, changes=changes)
    for case, settings in cases.items():
        criterion = module.PaCoLoss(num_classes=CLASSES, **settings)
        criterion.cal_weight_for_classes(list(problem.COUNTS))
        head = create_head("linear", features.shape[1], CLASSES, normalise=False, adapter=8)
        values = dict(head.named_parameters())
        start_all(values)
        queue: list[tuple[Tensor, Tensor]] = []

        def loss(
            rows: Tensor, targets: Tensor, head: Any = head, criterion: Any = criterion, queue: Any = queue
        ) -> Tensor:
            embeddings = head.embed(rows)
            logits, queries = head.classify(embeddings), F.normalize(embeddings, dim=1)
            keys = torch.cat([part for part, _ in queue]) if queue else queries[:0].detach()
            labels = torch.cat([part for _, part in queue]) if queue else targets[:0]
            if batch_keys:
                criterion.K = len(keys)
                value: Tensor = criterion(torch.cat([queries, keys]), torch.cat([targets, labels]), logits)
            else:  # one sample at a time has no other keys than the queue, the first of which is the second view
                criterion.K = len(keys) - 1
                parts = [
                    criterion(
                        torch.cat([queries[i : i + 1], keys]),
                        torch.cat([targets[i : i + 1], labels]),
                        logits[i : i + 1],
                    )
                    for i in range(len(targets))
                ]
                value = torch.stack(parts).mean()
            queue.append((queries.detach(), targets))
            del queue[:-3]
            return value

        recording.add(case, settings | {"queue": 24}, *train_classifier(values, loss, features, lr=0.005))
    recording.write()


def paco(source: Path, features: Tensor) -> None:
    changes = (
        "called sample by sample with the queue as keys, because ours takes no keys from the batch and has no second "
        "encoder; the queue starts empty; CPU in place of CUDA"
    )
    cases = {"alpha .05": {"alpha": 0.05, "temperature": 0.2}}
    cases["alpha .02, supt 2"] = {"alpha": 0.02, "temperature": 0.07, "supt": 2.0}
    contrastive("paco", source, features, cases, changes, "PaCo", False)


def gpaco(source: Path, features: Tensor) -> None:
    changes = "one view per image; the queue starts empty; CPU in place of CUDA"
    cases = {"alpha .05": {"alpha": 0.05, "temperature": 0.2}}
    cases["smooth .1"] = {"alpha": 0.05, "temperature": 0.2, "smooth": 0.1}
    contrastive("gpaco", source, features, cases, changes, "GPaCo", True)


def sade(source: Path, features: Tensor) -> None:
    import trainer.trainer as trainer_module
    from model.loss import DiverseExpertLoss

    changes = "three classifiers of fixed features in place of the network; CPU in place of CUDA"
    recording = Recording("sade", "Vanint/SADE-AgnosticLT", source, "model/loss.py", changes=changes)
    trainer_module.make_grid = MagicMock()
    layers = nn.ModuleList(nn.Linear(features.shape[1], CLASSES) for _ in range(3))
    values = dict(layers.named_parameters())
    start_all(values)
    losses: list[float] = []

    class Experts(nn.Module):
        requires_target = False

        def _hook_before_iter(self) -> None:
            """Nothing to prepare."""

        def forward(self, rows: Tensor) -> dict[str, Tensor]:
            logits = torch.stack([layer(rows) for layer in layers], dim=1)
            return {"output": logits.mean(1), "logits": logits}

    class Watched(DiverseExpertLoss):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            loss: Tensor = super().forward(*args, **kwargs)
            losses.append(float(loss.detach()))
            return loss

    trainer = object.__new__(trainer_module.Trainer)
    batches = list(zip(features.split(problem.BATCH), problem.labels().split(problem.BATCH), strict=True))
    parts = {"model": Experts(), "criterion": Watched(list(problem.COUNTS), tau=2), "data_loader": batches}
    parts |= {"optimizer": torch.optim.SGD(values.values(), lr=0.01, momentum=0.9), "device": torch.device("cpu")}
    parts |= {"add_extra_info": True, "metric_ftns": [], "log_step": 1000, "len_epoch": 1000, "do_validation": False}
    parts |= {"lr_scheduler": None, "train_metrics": MagicMock(), "writer": MagicMock(), "logger": MagicMock()}
    for name, part in {**parts, "real_model": parts["model"]}.items():
        setattr(trainer, name, part)
    for epoch in range(1, problem.EPOCHS + 1):
        trainer._train_epoch(epoch)
    recording.add("three experts", {"tau": 2}, losses, [0.01] * len(losses), values)
    recording.add("aggregation", {"steps": 20, "lr": 5.0}, [], [], aggregated(source, layers, features))
    recording.write()


def aggregated(source: Path, layers: nn.ModuleList, features: Tensor) -> dict[str, Tensor]:
    """The weights of the trained experts after 20 released steps on two views of the images, all 40 in a batch."""
    from tools.parity.released import released_definitions

    offers = {"torch": torch, "F": F, "np": __import__("numpy"), "tqdm": iter}
    offers |= {"AverageMeter": MagicMock(), "ProgressMeter": MagicMock()}
    function = released_definitions(source / "test_training_cifar.py", ["test_training"], offers)["test_training"]
    model = nn.Module()
    model.forward = lambda rows: {"logits": torch.stack([layer(rows) for layer in layers], dim=1).detach()}
    weights = nn.Parameter(torch.full((3,), 1 / 3))
    optimizer = torch.optim.SGD([weights], lr=5.0, momentum=0.9, weight_decay=5e-4, nesterov=True)
    views = [features, problem.second_view(features)]
    for _ in range(20):
        function([(list(views), None)], None, model, weights, optimizer, None)
    return {"softmax of the weights": weights.detach().softmax(0)}


METHODS: dict[str, Callable[[Path, Tensor], None]] = {
    function.__name__: function for function in (ldam, vs, lade, paco, gpaco, sade)
}

if __name__ == "__main__":
    without_cuda()
    name, source = sys.argv[1], Path(sys.argv[2])
    sys.path.insert(0, str(source))
    METHODS[name](source, problem.features(problem.write_model(Path(tempfile.mkdtemp()))))
