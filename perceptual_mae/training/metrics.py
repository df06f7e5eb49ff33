"""The metrics of a run: what a step reports, averages over a log interval, and what each key means."""

import logging
import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from perceptual_mae.errors import UserError

log = logging.getLogger(__name__)

Scalars = dict[str, Tensor]
"""What a step reports, by name: scalars, detached, on the device."""

Numbers = dict[str, float]
"""The same, fetched from the device."""

METRICS_KEYS: dict[str, str] = {
    "epoch": "epoch of the last step, from 1 [1, training.epochs]",
    "step": "optimiser steps taken so far",
    "images_seen": "images trained on so far: step x training.batch_size",
    "total": "the generator's loss: the sum of all weighted terms",
    "raw/TERM": "loss of a term before weighting",
    "weighted/TERM": "the same times its weight: what the total adds up",
    "variety": "how much reconstructions differ from image to image, relative to the originals (about 1; near 0: mode "
    "collapse); every 8 steps, of batches of two images or more [0, inf)",
    "discriminator/loss": "the discriminator's loss, without its penalty; as all scalars of it and of ADA, in "
    "the steps in which it learns (discriminator.every)",
    "discriminator/real": "mean logit of real images (relativistic: less that of their reconstructions)",
    "discriminator/fake": "mean logit of reconstructions, the other way round; by position, of what is hidden",
    "discriminator/accuracy_real": "share of real images whose mean logit is above the loss's decision level [0, 1]",
    "discriminator/accuracy_fake": "share of reconstructions whose mean logit is below it [0, 1]",
    "penalty/r1": "R1, times its interval; in the steps in which it is due [0, inf)",
    "penalty/r2": "R2, times its interval; in the steps in which it is due [0, inf)",
    "penalty/lecam": "LeCam's penalty; 0 before penalties.lecam.from_step [0, inf)",
    "penalty/path_length": "path length penalty, times its interval; in the steps in which it is due [0, inf)",
    "path_length/mean": "running mean of path lengths, to which the penalty pulls [0, inf)",
    "augment/p": "probability of each of ADA's operations [0, 1]",
    "augment/r_t": "mean sign of real logits, which ADA holds at augment.target; from the first measurement on [-1, 1]",
    "gradient_ratio/TERM": "a balanced term's weighted gradient over its anchor's, where it is balanced, smoothed; "
    "every 8 steps, or the weight's `every` [0, inf)",
    "gradient/PLACE/TERM": "norm of a term's weighted gradient; PLACE is `decoder` (its input), "
    "`decoder_weights` (its embedding and last block), `last_layer` (its weights) or a level's size in pixels; about "
    "every training.log_every steps [0, inf)",
    "gradient_share/PLACE/TERM": "the same over the sum of all terms' norms at that place [0, 1]",
    "gradient_norm/generator": "norm of the generator's gradient before clipping; with optimizer.clip_norm [0, inf)",
    "gradient_norm/path_length": "the same for the path length's own update [0, inf)",
    "skipped/NETWORK": "share of steps that the fp16 loss scaler skipped; with training.precision=fp16 [0, 1]",
    "skipped_steps": "steps since the last record in which a loss or a gradient was not finite: they changed no "
    "weights, and their scalars count in no mean; where there were any (0, training.log_every]",
    "active": "names of the terms that are on",
    "learning_rate/generator": "learning rate of the last step [0, inf)",
    "learning_rate/discriminator": "learning rate of the last step [0, inf)",
    "images_per_second": "training images a second, over all processes, since the last record (0, inf)",
    "data_wait": "share of that time spent waiting for the data loader [0, 1]",
    "evaluation/SCORE": "PSNR and SSIM of held-out images, and their number; every evaluation.every epochs (see the "
    "scoring page)",
    "evaluation/baselines/FILLING/SCORE": "the same for fillings that learn nothing; at the end of the run",
    "evaluation/representation/rankme": "RankMe of held-out images' features, the mean patch tokens of whole images: "
    "how many directions they use; null for one image [1, width of the encoder]",
    "evaluation/representation/alpha_req": "alpha-ReQ of the same: how fast their variance falls from direction to "
    "direction (near 1: evenly spread; larger: few directions); null where it is not defined (-inf, inf)",
    "evaluation/representation/probe": "top-1 accuracy on held-out images of a linear probe of evaluation.probe_images "
    "training images; where there are labels [0, 1]",
    "evaluation/representation/knn": "the same by 20 nearest neighbours; where there are labels [0, 1]",
}
"""What stands in metrics.jsonl, one object a log interval: means over the steps that report a key, nested at `/`."""


@torch.no_grad()
def discriminator_statistics(real_scores: Tensor, fake_scores: Tensor, center: float) -> Scalars:
    """Return mean scores and accuracies against `center`; a score is an image's mean logit (B,), see `image_scores`."""
    real, fake = real_scores.float(), fake_scores.float()
    return {
        "discriminator/real": real.mean(),
        "discriminator/fake": fake.mean(),
        "discriminator/accuracy_real": (real > center).float().mean(),
        "discriminator/accuracy_fake": (fake < center).float().mean(),
    }


@torch.no_grad()
def output_diversity(fake: Tensor, real: Tensor) -> Tensor:
    """Return how much reconstructions (B, C, H, W) differ from image to image, relative to the originals (about 1)."""
    return _mean_deviation(fake) / _mean_deviation(real).clamp_min(1e-6)


def _mean_deviation(images: Tensor) -> Tensor:
    """Return the mean of `images.std(0)`, which is slow on CPUs: PyTorch reduces its first dimension unvectorised."""
    return ((images - images.mean(0)).square().sum(0) / (len(images) - 1)).sqrt().mean()


SKIPPED = "skipped/step"
"""The scalar that says whether a step was skipped; it is recorded as a count of steps, not as a mean."""


def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Tell whether all numbers of tensors are finite; waits for the device."""
    return bool(torch.stack([each.isfinite().all() for each in tensors]).all())


class Meter:
    """Keeps the scalars of the steps since the last report on the device and fetches them all at once.

    `pending` are those that were fetched for a checkpoint and wait for their report.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[int, Scalars]] = []
        self.pending: list[tuple[int, Numbers]] = []

    def add(self, step: int, scalars: Scalars) -> None:
        self.steps.append((step, scalars))

    def fetch(self, accelerator: Accelerator) -> list[tuple[int, Numbers]]:
        """Return each step's scalars, averaged over processes, and start anew. This waits for the device."""
        fetched, self.pending = self.peek(accelerator), []
        return fetched

    def peek(self, accelerator: Accelerator) -> list[tuple[int, Numbers]]:
        """Return each step's scalars, averaged over processes, and keep them for `fetch`. This waits for the device."""
        flat = [value.float() for _, scalars in self.steps for value in scalars.values()]
        if flat:
            values = iter(accelerator.reduce(torch.stack(flat), reduction="mean").tolist())
            self.pending += [(step, {name: next(values) for name in scalars}) for step, scalars in self.steps]
            self.steps = []
        return self.pending


def non_finite_loss(scalars: Numbers) -> str | None:
    """Return the name of a step's first loss that is not a finite number, or None."""
    for name, value in scalars.items():
        if name.startswith(("raw/", "weighted/", "penalty/", "discriminator/loss")) and not math.isfinite(value):
            return name.removeprefix("raw/").removeprefix("weighted/")
    return None


def average(steps: Sequence[tuple[int, Numbers]]) -> Numbers:
    """Average each scalar over the steps that report it."""
    values: dict[str, list[float]] = {}
    for _, scalars in steps:
        for name, value in scalars.items():
            values.setdefault(name, []).append(value)
    return {name: sum(each) / len(each) for name, each in values.items()}


def nest(scalars: Numbers) -> dict[str, Any]:
    """Turn `a/b` names into nested mappings, as they stand in metrics.jsonl."""
    tree: dict[str, Any] = {}
    for name, value in scalars.items():
        *groups, leaf = name.split("/")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[leaf] = value
    return tree


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(
                f"tracking.trackers: {name} is not installed; install it (pip install 'perceptual-mae[tracking]') "
                "or leave it out"
            )
