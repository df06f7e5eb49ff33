"""Running means of what a penalty measures, which neither micro-batches nor processes change."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class RunningMean:
    """Running means of a penalty's measurements, of some shape; they move once a step, after the penalty's use.

    They start at 0, and are divided by the weight that the measurements have had so far, as Adam's are.
    """

    def __init__(self, share: float, shape: tuple[int, ...] = ()) -> None:
        self.share = share  # of the latest step
        self.mean, self.weighed = torch.zeros(shape), torch.zeros((), dtype=torch.float64)  # the latter goes to 1
        self._sums: Tensor | None = None

    @property
    def expected(self) -> Tensor:
        """The means of earlier steps; NaN before the first."""
        return self.mean / self.weighed

    @torch.no_grad()
    def measure(self, *measurements: Tensor) -> None:
        """Add a micro-batch: tensors of any shape, one for each mean (one alone for a scalar mean)."""
        of_each = [torch.stack([each.sum(), torch.full_like(each.sum(), each.numel())]) for each in measurements]
        sums = torch.stack(of_each).view(*self.mean.shape, 2)
        self._sums = sums if self._sums is None else self._sums + sums

    def finish(self, reduce_sum: Callable[[Tensor], Tensor] = lambda sums: sums) -> None:
        """Move the means towards those of this step; `reduce_sum` adds tensors (..., 2) over processes."""
        if self._sums is None:
            return
        total, count = reduce_sum(self._sums).unbind(dim=-1)
        before, latest = self.expected.to(total), total / count
        # What is not finite counts as what was expected: it would stay in the mean for ever.
        latest = torch.where(latest.isfinite(), latest, before.nan_to_num(0.0))
        self.mean = torch.lerp(self.mean.to(total), latest, self.share)
        self.weighed = 1 - (1 - self.weighed) * (1 - self.share)
        self._sums = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running means and their divisor, the same on every process."""
        return {"mean": self.mean, "weighed": self.weighed}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.mean, self.weighed = state["mean"].clone(), state["weighed"].clone()
