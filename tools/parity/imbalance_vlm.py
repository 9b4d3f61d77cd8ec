"""Record 20 steps of the released code of Imbalance-VLM: python -m tools.parity.imbalance_vlm SOURCE

SOURCE is a checkout of github.com/Imbalance-VLM/Imbalance-VLM. Needs transformers 4.30, which the project does not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

from tests.parity import problem
from tools.parity.released import Recording, without_cuda

SETTINGS: dict[str, Any] = {
    "algorithm": "supervised", "num_classes": len(problem.NAMES), "ema_m": 0.0, "epoch": problem.EPOCHS,
    "num_train_iter": problem.EPOCHS * problem.STEPS_PER_EPOCH, "num_warmup_iter": 5, "num_eval_iter": 1000,
    "num_log_iter": 1000, "amp": False, "clip_grad": 0, "save_name": "", "save_dir": "", "resume": False, "gpu": None,
    "rank": 0, "distributed": False, "world_size": 1, "optim": "SGD", "lr": 0.0003, "momentum": 0.9,
    "weight_decay": 5e-4, "layer_decay": 1.0, "net": "openai_clip_vit_large_patch14", "loss_type": "softmax",
    "freeze_backbone": False, "extra_fc": None, "decoder_depth": 3, "decoder_mlp_ratio": 0.5, "decoder_num_heads": 4,
}  # fmt: skip
"""As the released config_generator_imb_clip.py writes them, with a shorter training at a lower rate; it clips no
gradients, because the training reads `clip_grad` and the configuration says `clip`."""
LOSSES = ("softmax", "cbw_loss", "focal_loss", "balanced_softmax", "grw_loss", "lade_loss", "ldam_loss")
STAGES = {"crt": "softmax", "lws": "softmax", "disalign": "grw_loss", "marc": "grw_loss"}
"""Second stages, and the loss that each is trained with."""
LADE = (
    "its regulariser reads the logits after the prior is added; ours, like the LADE repository, reads them before, and "
    "no setting changes that"
)


def vision_tower(transformers_clip: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the image tower by their names in transformers."""
    names = {
        "class_embedding": "embeddings.class_embedding", "conv1.weight": "embeddings.patch_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight", "ln_pre": "pre_layrnorm",
        "ln_post": "post_layernorm", "transformer.resblocks": "encoder.layers", "ln_1": "layer_norm1",
        "ln_2": "layer_norm2", "c_fc": "fc1", "c_proj": "fc2", "attn.out_proj": "self_attn.out_proj",
    }  # fmt: skip
    tower = {}
    for name, value in weights.items():
        if not name.startswith("visual.") or name == "visual.proj":
            continue
        name = name.removeprefix("visual.")
        for old, new in names.items():
            name = name.replace(old, new)
        if "attn.in_proj" in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                tower[name.replace("attn.in_proj_", f"self_attn.{letter}_proj.")] = part
        else:
            tower[name] = value
    return tower


def build_net(nets: Any, transformers_clip: Any, **settings: Any) -> nn.Module:
    """The released network with the problem's tower, and with its decoder and classifier at the problem's start."""
    config = transformers_clip.CLIPVisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=5, num_attention_heads=3, image_size=32, patch_size=8
    )
    net: nn.Module = nets.CLIPVisionModelWithProjection(
        config,
        settings["num_classes"],
        settings["decoder_num_heads"],
        settings["decoder_mlp_ratio"],
        settings["decoder_depth"],
    )
    tower = vision_tower(transformers_clip, problem.weights())
    missing, unexpected = net.get_submodule("vision_model").load_state_dict(tower, strict=False)
    assert not unexpected
    assert set(missing) <= {"embeddings.position_ids"}
    trained = {name: value for name, value in net.named_parameters() if not name.startswith("vision_model")}
    with torch.no_grad():
        for number, (name, value) in enumerate(trained.items(), start=1):
            value.copy_(problem.lively_start(name, *value.shape, seed=number))
    return net


def train(supervised: type, build: Any, settings: dict[str, Any]) -> tuple[list[float], list[float], dict[str, Tensor]]:
    from imblearn.core.hooks import ParamUpdateHook

    class Trainer(supervised):  # type: ignore[misc]
        """Without the hooks that time, log, evaluate and save."""

        def set_hooks(self) -> None:
            self.register_hook(ParamUpdateHook(), None, "HIGHEST")

        def train_step(self, x_lb: Tensor, y_lb: Tensor) -> Any:
            outputs = super().train_step(x_lb, y_lb)
            losses.append(float(outputs[0]["loss"].detach()))
            rates.append(self.optimizer.param_groups[0]["lr"])
            return outputs

    losses: list[float] = []
    rates: list[float] = []
    args = MagicMock(**SETTINGS | settings)
    args.__contains__.return_value = False
    algorithm = Trainer(args, build, None, MagicMock())
    if algorithm.extra_fc == "disalign":
        with torch.no_grad():
            for number, value in enumerate(algorithm.model.confidence_layer.parameters(), start=1):
                value.copy_(problem.start(*value.shape, seed=number))
    before = {name: value.detach().clone() for name, value in algorithm.model.named_parameters()}
    algorithm.train()
    after = dict(algorithm.model.named_parameters())
    return losses, rates, {name: value for name, value in after.items() if not value.equal(before[name])}


def main(source: Path) -> None:
    import transformers.models.clip.modeling_clip as transformers_clip  # before the stubs, which it would look for

    without_cuda()
    sys.path.insert(0, str(source))
    for name in ("ruamel", "ruamel.yaml", "wandb", "aim", "torch.utils.tensorboard"):
        sys.modules[name] = MagicMock()
    sys.modules["imblearn.datasets"] = stub = ModuleType("imblearn.datasets")
    stub.name2sampler, stub.DistributedSampler = {}, object  # type: ignore[attr-defined]  # the batches are given
    import imblearn.core.algorithmbase as base
    from imblearn.algorithms.supervised.supervised import Supervised
    from imblearn.nets.clip import clip as nets

    targets = [label for label, count in enumerate(problem.COUNTS) for _ in range(count)]
    images = type("Images", (list,), {"targets": targets})()
    base.get_dataset = lambda *_: {"train_lb": images, "eval": images, "test": None}
    batches = [{"x_lb": pixels, "y_lb": labels} for pixels, labels in problem.batches()[: problem.STEPS_PER_EPOCH]]
    base.get_data_loader = lambda *_, **__: batches
    changes = "CPU in place of CUDA; torch.compile, and the hooks that time, log, evaluate and save, are left out"
    file = "imblearn/algorithms/supervised/supervised.py"
    recording = Recording("imbalance_vlm", "Imbalance-VLM/Imbalance-VLM", source, file, changes=changes)

    def build(**settings: Any) -> nn.Module:
        return build_net(nets, transformers_clip, **settings)

    for loss in LOSSES:
        settings: dict[str, Any] = {"loss_type": loss}
        differs = LADE if loss == "lade_loss" else ""
        recording.add(f"decoder, {loss}", settings, *train(Supervised, build, settings), differs)
    for stage, loss in STAGES.items():
        settings = {"loss_type": loss, "extra_fc": stage, "freeze_backbone": True, "lr": 0.002}
        recording.add(stage, settings, *train(Supervised, build, settings))
    recording.write()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
