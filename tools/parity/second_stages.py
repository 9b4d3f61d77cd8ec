"""Record the released second stages: python -m tools.parity.second_stages METHOD SOURCE

METHOD is one of METHODS, SOURCE a checkout of its repository. The first stage is a linear classifier of fixed image
features.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.parity import problem
from tools.parity.released import (
    Recording,
    released_definitions,
    released_module,
    start_all,
    train_classifier,
    without_cuda,
)

CLASSES = len(problem.NAMES)
REPOSITORY = "facebookresearch/classifier-balancing"
CHANGES = "fixed features in place of the network; evaluation, logging and saving are left out; CPU in place of CUDA"


def balanced_training(source: Path, classifier: nn.Module, features: Tensor) -> Any:
    """Train a classifier with the released `train` of classifier-balancing."""
    sys.modules["h5py"] = MagicMock()
    import run_networks as released

    released.time = SimpleNamespace(sleep=lambda _: None)
    released.print_write = lambda *_: None
    losses: list[float] = []
    rates: list[float] = []

    class Trainer(released.model):  # type: ignore[misc]
        def eval(self, *_: Any, **__: Any) -> dict[str, float]:
            self.eval_acc_mic_top1 = 1.0
            return {}

        def eval_with_preds(self, *_: Any) -> dict[str, float]:
            return {}

        def batch_backward(self) -> None:
            losses.append(float(self.loss.detach()))
            rates.append(self.model_optimizer.param_groups[0]["lr"])
            super().batch_backward()

    class Features(nn.Module):
        def forward(self, rows: Tensor) -> tuple[Tensor, None]:
            return rows, None

    pairs = zip(features.split(problem.BATCH), problem.labels().split(problem.BATCH), strict=True)
    trainer = object.__new__(Trainer)
    parts: dict[str, Any] = {"config": {"coslr": True, "endlr": 0.0}, "memory": {"centroids": False}}
    parts |= {"training_opt": {"num_epochs": problem.EPOCHS, "display_step": 1000}, "do_shuffle": False}
    parts |= {"networks": {"feat_model": Features(), "classifier": classifier}, "num_gpus": 0, "centroids": None}
    parts |= {"criterions": {"PerformanceLoss": released_module(source / "loss" / "SoftmaxLoss.py").create_loss()}}
    parts |= {"criterion_weights": {"PerformanceLoss": 1.0}, "criterion_optimizer": None, "logger": MagicMock()}
    parts |= {"data": {"train": Loader((rows, labels, None) for rows, labels in pairs)}, "log_file": None}
    parts |= {"epoch_steps": problem.STEPS_PER_EPOCH}
    parts |= {"save_latest": MagicMock(), "save_model": MagicMock(), "reset_model": MagicMock()}
    for name, part in parts.items():
        setattr(trainer, name, part)
    groups = [{"params": classifier.parameters(), "lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}]
    trainer.model_optimizer, trainer.model_optimizer_scheduler = trainer.init_optimizers(groups)
    trainer.train()
    values = {name: value for name, value in classifier.named_parameters() if value.requires_grad}
    return losses, rates, values


class Loader(list[Any]):
    """The batches of an epoch, with the attribute that a loader has."""

    sampler = None


def crt(source: Path, features: Tensor) -> None:
    classifier = released_module(source / "models" / "DotProductClassifier.py")
    classifier = classifier.DotProduct_Classifier(CLASSES, features.shape[1])
    start_all(dict(classifier.named_parameters()))
    recording = Recording("crt", REPOSITORY, source, "models/DotProductClassifier.py", changes=CHANGES)
    recording.add("cRT", {"lr": 0.02}, *balanced_training(source, classifier, features))
    recording.write()


def lws(source: Path, features: Tensor) -> None:
    classifier = released_module(source / "models" / "TauNormClassifier.py")
    classifier = classifier.DotProduct_Classifier(CLASSES, features.shape[1])
    start_all(dict(classifier.fc.named_parameters()))
    recording = Recording("lws", REPOSITORY, source, "models/TauNormClassifier.py", changes=CHANGES)
    recording.add("LWS", {"lr": 0.02}, *balanced_training(source, classifier, features))
    recording.write()


def tau_norm(source: Path, features: Tensor) -> None:
    names = ["pnorm", "dotproduct_similarity"]
    released = released_definitions(source / "tau_norm.py", names, {"torch": torch})
    weight = problem.start(CLASSES, features.shape[1], seed=1)
    logits = {
        f"logits at tau {tau:.1f}": released["dotproduct_similarity"](features, released["pnorm"](weight, tau))
        for tau in np.linspace(0, 2, 21)
    }
    recording = Recording("tau_norm", REPOSITORY, source, "tau_norm.py", changes="its two functions alone are run")
    recording.add("tau 0 to 2", {}, [], [], logits)
    recording.write()


def disalign(source: Path, features: Tensor) -> None:
    wrappers, loss_file = source / "cvpods/layers/wrappers.py", source / "cvpods/modeling/losses/grw_loss.py"
    layer_type = released_definitions(wrappers, ["DisAlignLinear"], {"torch": torch, "F": F, "Tensor": Tensor})
    loss_type = released_module(loss_file).GRWCrossEntropyLoss
    criterion = loss_type(num_samples_list=list(problem.COUNTS), num_classes=CLASSES, exp_scale=1.2)
    layer = layer_type["DisAlignLinear"](features.shape[1], CLASSES)
    start_all({"weight": layer.weight, "bias": layer.bias})
    start_all(dict(layer.confidence_layer.named_parameters()))
    values = {name: value for name, value in layer.named_parameters() if name not in ("weight", "bias")}
    changes = (
        "the layer and the loss that the DisAlign repository imports from here are trained by a plain loop, SGD at a "
        "constant rate; the confidence starts as in the problem"
    )
    file = "cvpods/layers/wrappers.py"
    recording = Recording("disalign", "Megvii-BaseDetection/cvpods", source, file, changes=changes)

    def loss(rows: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = criterion(layer(rows), targets)
        return value

    recording.add("rho 1.2", {"exp_scale": 1.2}, *train_classifier(values, loss, features, weight_decay=5e-4))
    recording.write()


METHODS: dict[str, Callable[[Path, Tensor], None]] = {
    function.__name__: function for function in (crt, lws, tau_norm, disalign)
}

if __name__ == "__main__":
    without_cuda()
    name, source = sys.argv[1], Path(sys.argv[2])
    sys.path.insert(0, str(source))
    METHODS[name](source, problem.features(problem.write_model(Path(tempfile.mkdtemp()))))
