"""Device names, and the memory format of convolutional networks."""

from __future__ import annotations

import pytest
import timm
import torch

from imbalance_vlm import InputError
from imbalance_vlm.training.devices import fast_layout, resolve_device

CPU = torch.device("cpu")


def test_device_names() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:0:0", ""])
def test_missing_device_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"`device` must be auto, cpu or a GPU of this machine .*got '{name}'"):
        resolve_device(name)


def test_layout_is_kept_on_the_cpu() -> None:
    net = timm.create_model("resnet10t", num_classes=0)
    assert fast_layout(net, CPU) is net
    assert all(value.is_contiguous() for value in net.parameters())


@pytest.mark.gpu
def test_conv_nets_run_channels_last_on_a_gpu() -> None:
    gpu = torch.device("cuda")
    net = timm.create_model("resnet10t", num_classes=0).eval()
    pixels = torch.randn(2, 3, 32, 32)
    wanted = net(pixels)
    fast_layout(net, gpu)
    assert net.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(pixels.to(gpu)).cpu(), wanted, rtol=1e-3, atol=1e-3)
    vit = fast_layout(timm.create_model("vit_tiny_patch16_224", num_classes=0), gpu)
    assert all(value.is_contiguous() for value in vit.parameters())
