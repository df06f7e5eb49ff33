"""Controller of the augmentation probability, by the signs of the discriminator's real logits."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def sign_sums(real_logits: Tensor, center: float) -> Tensor:
    """Return (sum of signs, count), shape (2,), of logits (B, ...) about the decision level; sum them over processes.

    `center` is where the discriminator is undecided: 0 for logistic and hinge losses, 0.5 for least squares with labels
    0 and 1. About 0, all real logits of a least-squares discriminator are positive, and p would only ever rise.
    """
    signs = (real_logits.float() - center).sign()
    return torch.stack([signs.sum(), torch.full_like(signs.sum(), signs.numel())])


class Controller:
    """Keeps r_t, the mean sign of real logits, at `target` by moving p (Training GANs with Limited Data, section 3.1).

    A discriminator that over-fits is sure of all real images: r_t nears 1, and p rises. p moves once in `interval`
    steps, at a speed that takes it from 0 to 1 in `kimg` thousand images, between 0 and `p_max`. `target` None holds
    p at `initial_p`. Feed it sums over all processes: p is then the same on all of them.
    """

    def __init__(
        self,
        target: float | None = 0.6,
        interval: int = 4,
        kimg: float = 500.0,
        p_max: float = 0.85,
        initial_p: float = 0.0,
    ) -> None:
        if target is not None and not -1 < target < 1:
            raise ValueError(f"ada's target {target} must be between -1 and 1 (a mean of signs); 0.6 is usual")
        if interval < 1 or kimg <= 0:
            raise ValueError(f"ada needs interval >= 1 and kimg > 0, not interval {interval} and kimg {kimg}")
        if not 0 <= initial_p <= p_max <= 1:
            raise ValueError(f"ada needs 0 <= initial_p <= p_max <= 1, not initial_p {initial_p} and p_max {p_max}")
        self.target, self.interval, self.kimg, self.p_max = target, interval, kimg, p_max
        self.p, self.r_t = initial_p, math.nan
        self._steps, self._images = 0, 0
        self._sums: Tensor | None = None

    def observe(self, sums: Tensor, num_images: int) -> None:
        """Add one step: `sign_sums` (2,) over all micro-batches and processes, and the images of the global batch.

        Waits for the device once in `interval` steps only.
        """
        sums = sums.detach()
        self._sums = sums if self._sums is None else self._sums.to(sums) + sums
        self._steps, self._images = self._steps + 1, self._images + num_images
        if self._steps < self.interval:
            return
        total, count = self._sums.tolist()
        self.r_t = total / max(count, 1)
        if self.target is not None:
            step = self._images / (self.kimg * 1000)
            direction = (self.r_t > self.target) - (self.r_t < self.target)
            self.p = min(max(self.p + direction * step, 0.0), self.p_max)
        self._steps, self._images, self._sums = 0, 0, None

    @property
    def warning(self) -> str | None:
        """Return a line of warning where p is at (within 5% of) its bound, and None elsewhere."""
        if self.target is None or self.p < 0.95 * self.p_max:
            return None
        return (
            f"ada's p {self.p:.2f} is at its bound {self.p_max}: the discriminator is still too sure of real images, "
            "and augmentations this frequent may leak into reconstructions; use more data, a smaller discriminator, "
            "a larger r1.gamma or a lower augment.p_max"
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return p, r_t (NaN before the first measurement) and the sums since, the same on every process."""
        sums = [0.0, 0.0] if self._sums is None else self._sums.tolist()
        values = {"p": self.p, "r_t": self.r_t, "sum": sums[0], "count": sums[1]}
        counts = {"steps": float(self._steps), "images": float(self._images)}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in (values | counts).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        values = {name: float(value) for name, value in state.items()}
        # A lower p_max may have been asked for since.
        self.p, self.r_t = min(values["p"], self.p_max), values["r_t"]
        self._steps, self._images = int(values["steps"]), int(values["images"])
        self._sums = torch.tensor([values["sum"], values["count"]]) if self._steps else None
