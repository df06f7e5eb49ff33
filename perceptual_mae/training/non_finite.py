"""Steps whose losses or gradients are not finite: skipped on the device, without waiting for it."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.optim import Optimizer

SKIPPED = "skipped/step"
"""The scalar that says whether a step was skipped; it is recorded as a count of steps, not as a mean."""


class UpdateGuard:
    """Lets an optimiser leave weights and moments as they are once a loss or gradient of the step is not finite.

    The decision is a tensor on the device, handed to the fused optimiser as `found_inf`, as a loss scaler does it. It
    is the same in all processes: gradients are those of all of them, and losses are added up. With a loss scaler
    (fp16), whose work it is to skip such gradients, nothing is done here.
    """

    def __init__(self, accelerator: Accelerator, parameters: Sequence[Tensor]) -> None:
        self.accelerator, self.parameters = accelerator, list(parameters)
        """Parameters whose gradients decide, of all networks that are trained."""
        self.flag = torch.zeros((), dtype=torch.float32, device=accelerator.device)  # the type that kernels read
        """1 once something in this step is not finite, else 0."""
        self.losses: list[Tensor] = []
        """Losses of this process since the last update, detached: they decide, too."""

    def begin_step(self) -> None:
        self.flag, self.losses = torch.zeros_like(self.flag), []

    @torch.no_grad()
    def update(self, optimizer: Optimizer) -> None:
        """Take the optimiser's step unless something in this step is not finite."""
        if self.accelerator.scaler is not None:
            optimizer.step()
            return
        gradients = [each.grad for each in self.parameters if each.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        is_bad = torch.stack([~each.isfinite().to(norm.device) for each in (*self.losses, norm)]).any().to(self.flag)
        if self.losses and self.accelerator.num_processes > 1:  # gradients have been exchanged, losses have not
            is_bad = cast(Tensor, self.accelerator.reduce(is_bad, reduction="sum")).clamp_max(1)
        self.losses, self.flag = [], torch.maximum(self.flag, is_bad)
        inner: Any = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        if inner.defaults.get("fused"):
            inner.found_inf = self.flag
            optimizer.step()
            del inner.found_inf
        elif not bool(self.flag):  # waits for the device: only a fused kernel reads the flag there
            optimizer.step()

    def scalars(self) -> dict[str, Tensor]:
        """Return whether the last step was skipped: nothing where a loss scaler decides."""
        return {SKIPPED: self.flag} if self.accelerator.scaler is None else {}


def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Tell whether all numbers of tensors are finite; waits for the device."""
    return bool(torch.stack([each.isfinite().all() for each in tensors]).all())
