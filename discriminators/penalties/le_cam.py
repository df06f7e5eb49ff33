"""LeCam regularisation: logits are kept near the running means of the other side's."""

import torch
from torch import Tensor

from discriminators.penalties.running_mean import RunningMean
from discriminators.precision import full_precision


class LeCam(RunningMean):
    """LeCam: real logits are drawn towards the running mean of fake ones, and fake ones towards that of real ones.

    From Regularizing Generative Adversarial Networks under Limited Data (Tseng et al. 2021). The means are those of all
    logits of earlier steps' global batches: so neither micro-batches nor processes change a run. (The original moves
    them before use.) They are divided by the weight their measurements have had so far, as Adam's are. The first step,
    and those before `from_step`, only measure.

        loss = loss + lecam(real_logits, fake_logits, step)          # once a micro-batch
        lecam.finish(lambda sums: accelerator.reduce(sums, "sum"))   # once a step, on every process

    Options:
        weight: weight of the penalty; 0 is off [TA-TiTok]
        decay: share of the earlier logits in the running means, in [0, 1) [LeCam]
        from_step: first step, counted from 0, in which the penalty counts; earlier ones only measure [LeCam]

    Raises ValueError for options out of range.
    """

    def __init__(
        self,
        size: tuple[int, int],  # this and the next: the penalties' common signature
        batch_size: int,
        *,
        weight: float = 0.001,
        decay: float = 0.99,
        from_step: int = 1000,
    ) -> None:
        if weight < 0 or not 0 <= decay < 1 or from_step < 0:
            raise ValueError(
                f"lecam needs weight >= 0, 0 <= decay < 1 and from_step >= 0, not {weight}, {decay} and {from_step}"
            )
        super().__init__(share=1 - decay, shape=(2,))  # real, fake
        self.weight, self.from_step = weight, from_step

    def __call__(self, real_logits: Tensor, fake_logits: Tensor, step: int) -> Tensor:
        """Return the penalty of a step, counted from 0, of logits (B, ...); see `lecam`."""
        real, fake = full_precision(real_logits), full_precision(fake_logits)
        self.measure(real, fake)
        if step < self.from_step or not self.weighed:
            return 0 * (real.sum() + fake.sum())
        mean_real, mean_fake = self.expected.to(real.device).unbind()
        return self.weight * lecam(real, fake, mean_real, mean_fake)


def lecam(real_logits: Tensor, fake_logits: Tensor, mean_real: Tensor | float, mean_fake: Tensor | float) -> Tensor:
    """Return mean relu(real - mean_fake)^2 + mean relu(mean_real - fake)^2 over logits (B, ...), in float32 or wider.

    mean_real, mean_fake: running means of logits, scalars. Only logits on their own side of the other's mean count.
    """
    real, fake = full_precision(real_logits), full_precision(fake_logits)
    return torch.relu(real - mean_fake).square().mean() + torch.relu(mean_real - fake).square().mean()
