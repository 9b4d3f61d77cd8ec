"""Linear layers and attention by oneDNN, against torch's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from imbalance_vlm.encoders.linear import ONEDNN, OneDnnLayers, linear

needs_onednn = pytest.mark.skipif(ONEDNN is None, reason="this build of torch has no oneDNN")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class Operators(TorchDispatchMode):
    """The names of torch's operators, as they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    @property
    def onednn(self) -> int:
        return sum("_linear_pointwise" in name for name in self.names)


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    aim = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return torch.autograd.grad((output * aim).sum(), inputs)


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("trained", ["input", "weights", "both"])
def test_values_and_gradients_are_those_of_torch(shape: tuple[int, ...], has_bias: bool, trained: str) -> None:
    x = torch.randn(shape).requires_grad_(trained != "weights")
    weight, bias = (torch.randn(size).requires_grad_(trained != "input") for size in ((4, 5), (4,)))
    arguments = [x, weight, bias] if has_bias else [x, weight]
    output, wanted = linear(*arguments), F.linear(*arguments)
    torch.testing.assert_close(output, wanted, **CLOSE)
    inputs = [argument for argument in arguments if argument.requires_grad]
    for first, second in zip(gradients(output, inputs), gradients(wanted, inputs), strict=True):
        torch.testing.assert_close(first, second, **CLOSE)


def test_inputs_and_weights_in_any_memory_order() -> None:
    x, weight = torch.randn(3, 2, 5).transpose(0, 1), torch.randn(5, 4).t()
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), **CLOSE)
    assert linear(torch.empty(0, 5), weight).shape == (0, 4)


def test_gradients_of_gradients() -> None:
    x, weight = torch.randn(3, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)

    def penalty(output: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        return slope.square().sum()

    ours = torch.autograd.grad(penalty(linear(x, weight)), [x, weight])
    for first, second in zip(ours, torch.autograd.grad(penalty(F.linear(x, weight)), [x, weight]), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


@needs_onednn
def test_float32_goes_to_onednn_and_everything_else_to_torch() -> None:
    x, weight = torch.randn(3, 5, requires_grad=True), torch.randn(4, 5)
    with Operators() as operators:
        linear(x, weight).sum().backward()
    assert operators.onednn == 2
    with Operators() as operators:
        assert torch.equal(linear(x.double(), weight.double()), F.linear(x.double(), weight.double()))
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16
        assert linear(x.to("meta"), weight.to("meta")).is_meta
    assert operators.onednn == 0


@needs_onednn
def test_a_frozen_layer_keeps_nothing_of_its_input() -> None:
    saved: list[Tensor] = []
    x, weight = torch.randn(3, 5, requires_grad=True), torch.randn(4, 5)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        linear(x, weight, torch.randn(4))
    assert [tensor.data_ptr() for tensor in saved] == [weight.data_ptr()]


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, **({"batch_first": True} | options)).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def both(module: nn.Module, *args: Any, **options: Any) -> tuple[Any, Any]:
    """The outputs of torch's own module, and by oneDNN."""
    layers = OneDnnLayers([module])
    wanted = module(*args, **options)
    layers.on()
    output = module(*args, **options)
    layers.off()
    assert "forward" not in module.__dict__
    return output, wanted


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("queries", [1, 3, 5])
def test_attention_is_that_of_torch(frozen: bool, bias: bool, queries: int) -> None:
    module, x = attention(bias=bias).requires_grad_(not frozen), torch.randn(2, 5, 8, requires_grad=True)
    query = x if queries == 5 else x[:, :queries]
    (output, _), (wanted, _) = both(module, query, x, x, need_weights=False, attn_mask=None)
    torch.testing.assert_close(output, wanted, **CLOSE)
    inputs = [x, *module.parameters()] if not frozen else [x]
    for first, second in zip(gradients(output, inputs), gradients(wanted, inputs), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {"need_weights": True}),
        ({}, {"need_weights": False, "attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1)}),
        ({}, {"need_weights": False, "key_padding_mask": torch.zeros(2, 5, dtype=torch.bool)}),
        ({"batch_first": False}, {"need_weights": False}),
        ({"add_bias_kv": True}, {"need_weights": False}),
        ({"add_zero_attn": True}, {"need_weights": False}),
    ],
)
def test_other_attention_is_left_to_torch(settings: dict[str, Any], options: dict[str, Any]) -> None:
    module, x = attention(**settings), torch.randn(2, 5, 8, requires_grad=True)
    (output, weights), (wanted, wanted_weights) = both(module, x, x, x, **options)
    assert torch.equal(output, wanted)
    assert (weights is None) == (wanted_weights is None)
    wider = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)
    (output, _), (wanted, _) = both(wider, x, x[..., :4], x[..., :4], need_weights=False)
    assert torch.equal(output, wanted)


def test_other_modules_are_left_alone_and_a_copy_has_its_own_weights() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    net, x = nn.Sequential(nn.Linear(4, 4), Doubled(4, 4)), torch.randn(2, 4)
    layers = OneDnnLayers(net.modules())
    layers.on()
    clone = copy.deepcopy(net)
    with torch.no_grad():
        before = net(x)
        clone[0].weight.zero_()
        clone[0].bias.zero_()
        assert torch.equal(net(x), before)
        torch.testing.assert_close(clone(x), 2 * net[1].bias.expand(2, 4))
    layers.off()
    torch.testing.assert_close(net(x), before, **CLOSE)
