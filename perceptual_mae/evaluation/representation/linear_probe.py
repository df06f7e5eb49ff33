"""A linear probe on features that were computed once: how much of the labels a linear map can read from them.

The strength of its regularisation, or its learning rate, is chosen on a held-out part of the training features. Test
features enter after everything is chosen and fitted.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from perceptual_mae.evaluation.representation.probe_head import (
    ProbeHead,
    accuracies,
    fit_in_batches,
    fit_lbfgs,
    set_statistics,
)
from perceptual_mae.evaluation.resumption import NO_CHECKPOINTS, Checkpointing
from perceptual_mae.seeding import stream

ProbeOptimizer = Literal["lbfgs", "sgd", "lars"]

CANDIDATES: dict[str, tuple[float, ...]] = {
    "lbfgs": (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    "sgd": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    "lars": (0.4, 0.8, 1.6, 3.2, 6.4, 12.8),
}
"""What is chosen from: strengths of the L2 penalty for L-BFGS, peak learning rates for the others. Ours."""

HELD_OUT, EPOCHS, BATCH_SIZE = 0.1, 90, 256
PATIENCE = 2
"""Penalties in a row, from the strongest down, whose held-out loss may rise before the search ends."""
SOLVED_ON_CPU = 1 << 25
"""Features x channels x classes up to which L-BFGS runs on the CPU: seconds there, by one thread."""


@dataclass(frozen=True)
class FittedProbe:
    """A head with what it was chosen from: `tried` maps candidates to held-out accuracy in [0, 1]."""

    head: ProbeHead
    chosen: float
    tried: dict[float, float]


@dataclass(frozen=True)
class ProbeResult:
    """Top-1 accuracy in [0, 1] on the test features, and the probe that reached it."""

    accuracy: float
    probe: FittedProbe


def linear_probe(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int | None = None,
    optimizer: ProbeOptimizer = "lbfgs",
    candidates: Sequence[float] | None = None,
    held_out: float = HELD_OUT,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    checkpointing: Checkpointing = NO_CHECKPOINTS,
) -> ProbeResult:
    """Fit a probe to features (N, D) with labels (N,), and score it on test features (M, D) with labels (M,).

    See `fit_probe` for the options. Everything happens on the device that the tensors are on.
    """
    fitted = fit_probe(
        features,
        labels,
        num_classes=num_classes,
        optimizer=optimizer,
        candidates=candidates,
        held_out=held_out,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        checkpointing=checkpointing,
    )
    return ProbeResult(accuracies(fitted.head, test_features, test_labels)[0][0], fitted)


def fit_probe(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int | None = None,
    optimizer: ProbeOptimizer = "lbfgs",
    candidates: Sequence[float] | None = None,
    held_out: float = HELD_OUT,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    checkpointing: Checkpointing = NO_CHECKPOINTS,
) -> FittedProbe:
    """Return the best head that was fitted to all but a share `held_out` of features (N, D) with int64 labels (N,).

    Best is the highest accuracy on that share, of equals the lowest loss. The head is not fitted again to all features:
    nothing that chose it ever trained it, and the seed (which part is held out, initial weights, order) shows in the
    result. A small problem of L-BFGS is solved on the CPU, whatever the device: the solver waits for every value.
    `epochs` and `batch_size` are those of sgd and lars. A fit that `checkpointing` has goes on where it
    stopped. Raises ValueError where there is too little to fit.
    """
    count = max(1, round(held_out * len(features)))
    if len(features) != len(labels) or len(features) - count < 2 or not 0 < held_out < 1:
        raise ValueError(
            f"{len(features)} features with {len(labels)} labels cannot give up a share of {held_out} and leave two"
        )
    candidates = CANDIDATES[optimizer] if candidates is None else tuple(candidates)
    copies = 1 if optimizer == "lbfgs" else len(candidates)
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    device = features.device
    if optimizer == "lbfgs" and features.numel() * num_classes <= SOLVED_ON_CPU:
        features, labels = features.cpu(), labels.cpu()
    order = torch.randperm(len(features), generator=stream("probe held out", seed)).to(features.device)
    selection, fitting = order[:count], order[count:]
    head = ProbeHead(features.shape[1], num_classes, copies=copies, seed=seed).to(features.device)
    held_out_part = (features[selection], labels[selection])
    if optimizer == "lbfgs":
        fitted = _descend(head, features[fitting], labels[fitting], held_out_part, candidates, checkpointing)
        fitted.head.to(device)
        return fitted
    fit_in_batches(
        head,
        features[fitting],
        labels[fitting],
        optimizer=optimizer,
        rates=candidates,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        checkpointing=checkpointing,
    )
    correct, losses = accuracies(head, *held_out_part)
    best = max(range(copies), key=lambda copy: (correct[copy], -losses[copy]))
    return FittedProbe(head.keep(best), candidates[best], dict(zip(candidates, correct, strict=True)))


def _descend(
    head: ProbeHead,
    features: Tensor,
    labels: Tensor,
    held_out_part: tuple[Tensor, Tensor],
    penalties: Sequence[float],
    checkpointing: Checkpointing,
) -> FittedProbe:
    """Fit with L-BFGS from the strongest penalty down, each from the one before, until held-out loss rises twice."""
    normalised, chosen_head = set_statistics(head, features), deepcopy(head)
    checkpointing.load({"head": head, "chosen": chosen_head})
    scores: list[tuple[float, float]] = [(correct, loss) for correct, loss in checkpointing.kept.get("scores", [])]
    penalties = sorted(penalties, reverse=True)
    for step in range(len(scores), len(penalties)):
        if _rises([loss for _, loss in scores]) == PATIENCE:
            break
        fit_lbfgs(head.copies()[0], normalised, labels, l2=penalties[step], checkpointing=checkpointing)
        (correct,), (loss,) = accuracies(head, *held_out_part)
        if all((correct, -loss) > (other, -its_loss) for other, its_loss in scores):
            chosen_head = deepcopy(head)
        scores.append((correct, loss))
        trained = {"head": head, "chosen": chosen_head}
        checkpointing.after_step(step + 1, len(penalties), trained, lambda: {"scores": scores})
    best = max(range(len(scores)), key=lambda step: (scores[step][0], -scores[step][1]))
    tried = {penalty: correct for penalty, (correct, _) in zip(penalties, scores, strict=False)}
    return FittedProbe(chosen_head.eval(), penalties[best], tried)


def _rises(losses: Sequence[float]) -> int:
    """Return how many of the last losses in a row are not below all before them."""
    rises, lowest = 0, math.inf
    for loss in losses:
        rises = 0 if loss < lowest else rises + 1
        lowest = min(lowest, loss)
    return rises
