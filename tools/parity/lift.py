"""Record 20 steps of the released code of LIFT, and its five crops: python -m tools.parity.lift SOURCE

SOURCE is a checkout of github.com/shijxcs/LIFT. Needs yacs and ftfy, which the project does not.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from PIL import Image

from tests.parity import problem
from tools.parity.released import Recording, prepare_clip, released_clip, released_module

METHODS: dict[str, dict[str, Any]] = {
    "adaptformer": {"adaptformer": True, "adapter_dim": 8},
    "adapter": {"adapter": True, "adapter_dim": 8},
    "lora": {"lora": True, "adapter_dim": 8},
    "vpt deep": {"vpt_deep": True, "vpt_len": 4},
    "vpt shallow": {"vpt_shallow": True, "vpt_len": 4},
    "ssf": {"ssf_attn": True, "ssf_mlp": True, "ssf_ln": True},
}
LOSSES = ("CE", "Focal", "LDAM", "CB", "GRW", "BS", "LA", "LADE")


def train(trainer_module: Any, settings: dict[str, Any]) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Build the released trainer for the problem, and train with its own `train`."""
    from utils.config import _C

    config = _C.clone()
    config.merge_from_list([part for item in settings.items() for part in item])
    config.merge_from_list(["backbone", "CLIP-ViT", "prec", "fp32", "num_epochs", problem.EPOCHS])
    config.merge_from_list(["init_head", "text_feat", "output_dir", tempfile.mkdtemp()])
    trainer = object.__new__(trainer_module.Trainer)
    values = {"cfg": config, "device": torch.device("cpu"), "classnames": list(problem.NAMES), "accum_step": 1}
    values |= {"cls_num_list": list(problem.COUNTS), "num_classes": len(problem.NAMES)}
    values |= {"many_idxs": np.arange(2), "med_idxs": np.arange(2), "few_idxs": np.arange(2)}
    values |= {"train_loader": list(problem.batches()[: problem.STEPS_PER_EPOCH])}
    for name, value in values.items():
        setattr(trainer, name, value)
    trainer.build_model()
    trained = {f"tuner.{name}": value for name, value in trainer.tuner.named_parameters()}
    trained |= {f"head.{name}": value for name, value in trainer.head.named_parameters()}
    with torch.no_grad():
        for number, (name, value) in enumerate(trained.items(), start=1):
            if name != "head.weight":  # which starts from text features
                value.copy_(problem.lively_start(name, *value.shape, seed=number))
    losses, rates = [], []
    criterion = trainer.criterion

    def recorded(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = criterion(output, label)
        losses.append(float(loss))
        rates.append(trainer.optim.param_groups[0]["lr"])
        return loss

    trainer.criterion = recorded
    trainer.save_model, trainer.test = MagicMock(), MagicMock()
    trainer.train()
    return losses, rates, trained


def crops(trainer_module: Any) -> dict[str, torch.Tensor]:
    """Five crops of one image as the released test set gives them."""
    taken: dict[str, Any] = {}

    class Images:
        num_classes, cls_num_list, classnames = len(problem.NAMES), list(problem.COUNTS), list(problem.NAMES)

        def __init__(self, root: str, train: bool, transform: Any = None) -> None:
            taken["test" if not train else "train"] = transform

        def __len__(self) -> int:
            return 1

    from utils.config import _C

    config = _C.clone()
    config.merge_from_list(["dataset", "Problem", "backbone", "CLIP-ViT", "resolution", 32, "expand", 4, "tte", True])
    config.merge_from_list(["num_workers", 0])
    trainer_module.datasets = SimpleNamespace(Problem=Images)
    trainer = object.__new__(trainer_module.Trainer)
    trainer.cfg = config
    trainer.build_data_loader()
    views = taken["test"](Image.fromarray(problem.photograph()))
    return {f"crop {number}": view for number, view in enumerate(views)}


def main(source: Path) -> None:
    prepare_clip(source)
    changes = {"self.criterion == BalancedSoftmaxLoss": "self.criterion = BalancedSoftmaxLoss"}
    module = released_module(source / "trainer.py", changes)
    module.load_clip_to_cpu = lambda *_: released_clip(module.clip.build_model)
    module.SummaryWriter = MagicMock()
    text = "`==` is `=` where the balanced softmax is chosen, which as released raises an error; CPU in place of CUDA"
    recording = Recording("lift", "shijxcs/LIFT", source, "trainer.py", changes=text)
    for method, settings in METHODS.items():
        recording.add(f"{method}, LA", settings, *train(module, settings))
    for loss in LOSSES:
        recording.add(f"head only, {loss}", {"loss_type": loss}, *train(module, {"loss_type": loss}))
    settings = {"classifier": "LinearClassifier", "loss_type": "LA"}
    recording.add("linear head, LA", settings, *train(module, settings))
    recording.add("five crops", {"tte_mode": "fivecrop", "expand": 4}, [], [], crops(module))
    recording.write()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
