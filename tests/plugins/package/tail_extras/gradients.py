"""Gradient centralisation.

[0] Yong, Huang, Hua, Zhang. Gradient Centralization: A New Optimization Technique for Deep Neural Networks. ECCV 2020.

    g_i <- g_i - mean_j g_ij,   for each row i of a matrix; vectors stay as they are
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from imbalance_vlm.balancing.gradients.base import Gradient
from imbalance_vlm.balancing.regularizers.base import StepOutputs


class Centralised(Gradient):
    """Removes from the gradient of every matrix its mean over the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self._matrices: list[nn.Parameter] = []

    @property
    def is_linear(self) -> bool:
        return True

    def start(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]

    def backward(self, loss: Tensor, outputs: StepOutputs) -> None:
        loss.backward()
        for parameter in self._matrices:
            if parameter.grad is not None:
                parameter.grad -= parameter.grad.mean(dim=tuple(range(1, parameter.ndim)), keepdim=True)
