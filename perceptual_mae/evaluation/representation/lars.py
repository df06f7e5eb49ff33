"""LARS: SGD with momentum whose steps are scaled layer by layer (You, Gitman and Ginsburg 2017).

MAE trains its linear probe with it at batches of 16,384.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """A step moves a matrix by lr times a momentum of trust * |weights| / |gradient| * gradient.

    Weight decay and the scaling are for tensors of two or more dimensions; biases take plain SGD steps. Weights or
    gradients that are all zero are not scaled.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; a closure, if given, computes the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        direction = gradient
        if parameter.dim() > 1:
            direction = gradient.add(parameter, alpha=group["weight_decay"])
            size, slope = parameter.norm(), direction.norm()
            ratio = torch.where((size > 0) & (slope > 0), group["trust"] * size / slope, 1.0)  # no wait for the device
            direction = direction * ratio
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        momentum.mul_(group["momentum"]).add_(direction)
        parameter.sub_(group["lr"] * momentum)
