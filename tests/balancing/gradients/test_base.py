"""The interface of gradient transforms."""

from __future__ import annotations

from imbalance_vlm.balancing.gradients.base import Gradient, PlainGradient
from imbalance_vlm.balancing.gradients.prograd import ProGrad
from imbalance_vlm.balancing.gradients.subspace import Subspace


class Plugin(Gradient):
    """A transform that does not mention `is_linear`."""


def test_only_the_plain_gradient_is_linear() -> None:
    assert PlainGradient().is_linear
    assert not any(transform.is_linear for transform in (ProGrad(1.0), Subspace(keep=6, rank=3), Plugin()))
