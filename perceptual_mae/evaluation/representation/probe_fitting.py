"""Fits a probe's linear map to cached features: L-BFGS on all of them, or SGD or LARS in batches."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from perceptual_mae.evaluation.representation.probe_head import ProbeHead
from perceptual_mae.schedules import learning_rate, set_learning_rate
from perceptual_mae.seeding import stream

MOMENTUM, TRUST = 0.9, 0.001  # MAE's probe
LOGITS_AT_ONCE = 1 << 25
"""Bounds the memory of one evaluation of the objective."""


def set_statistics(head: ProbeHead, features: Tensor) -> Tensor:
    """Give the head's BatchNorm the statistics of all features (N, D) and return the features it makes of them."""
    variance, mean = torch.var_mean(features, dim=0)
    assert head.norm.running_mean is not None
    assert head.norm.running_var is not None
    head.norm.running_mean.copy_(mean)
    head.norm.running_var.copy_(variance)
    with torch.no_grad():
        normalised: Tensor = head.norm.eval()(features)
    return normalised


def fit_lbfgs(linear: nn.Linear, features: Tensor, labels: Tensor, *, l2: float, iterations: int = 100) -> None:
    """Minimise mean cross-entropy + l2 / 2 * |weights|^2 over normalised features (N, D), from where `linear` stands.

    In scikit-learn's words C = 1 / (N l2); the bias is free.
    """
    weight, bias = linear.weight, linear.bias
    rows = max(1, LOGITS_AT_ONCE // linear.out_features)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        history_size=10,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        penalty = l2 / 2 * weight.square().sum()
        penalty.backward()  # type: ignore[no-untyped-call]
        total = penalty.detach()
        for part, wanted in zip(torch.split(features, rows), torch.split(labels, rows), strict=True):
            # Classes first: a softmax across few classes is much faster along the long side.
            logits = torch.addmm(bias[:, None], weight, part.T)
            loss = F.cross_entropy(logits[None], wanted[None], reduction="sum") / len(features)
            loss.backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        return total

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    linear.zero_grad()


def fit_in_batches(
    head: ProbeHead,
    features: Tensor,
    labels: Tensor,
    *,
    optimizer: str,
    rates: Sequence[float],
    epochs: int,
    batch_size: int,
    seed: int,
) -> None:
    """Train copy i of the head with peak learning rate `rates[i]` ("sgd" or "lars"), half a cosine down to 0.

    All copies see the same batches, in an order drawn from the seed; the remainder that fills no batch is left out of
    an epoch.
    """
    build = {"sgd": sgd, "lars": lars}[optimizer]
    optimizers = [build(list(linear.parameters())) for linear in head.copies()]
    batch_size = min(batch_size, len(features))
    steps_per_epoch = len(features) // batch_size
    decay = partial(learning_rate, floor=0.0, warmup_steps=0, total_steps=epochs * steps_per_epoch)
    head.train()
    for epoch in range(epochs):
        order = torch.randperm(len(features), generator=stream("probe order", seed, epoch)).to(features.device)
        for step in range(steps_per_epoch):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            logits = head(features[chosen])
            wanted = labels[chosen].repeat(len(logits))
            loss = F.cross_entropy(logits.flatten(0, 1), wanted) * len(logits)  # the copies' losses do not mix
            head.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for descent, peak in zip(optimizers, rates, strict=True):
                set_learning_rate(descent, decay(epoch * steps_per_epoch + step, peak=peak))
                descent.step()


def sgd(parameters: Sequence[Tensor]) -> Optimizer:
    """Return SGD with momentum 0.9, without weight decay; the learning rate is set step by step."""
    return torch.optim.SGD(parameters, lr=0.0, momentum=MOMENTUM)


def lars(parameters: Sequence[Tensor]) -> Optimizer:
    """Return LARS (You, Gitman and Ginsburg 2017) as MAE's linear probe has it: momentum 0.9, no weight decay.

    A matrix's gradient counts 0.001 * |weights| / |gradient|, vectors (biases) take plain SGD steps.
    """
    from timm.optim import Lars  # seconds to import, and only this protocol needs it

    matrices, vectors = (
        [parameter for parameter in parameters if (parameter.ndim > 1) == is_matrix] for is_matrix in (True, False)
    )
    groups = [{"params": matrices, "always_adapt": True}, {"params": vectors, "always_adapt": False}]
    optimizer: Optimizer = Lars(
        [group for group in groups if group["params"]], lr=0.0, momentum=MOMENTUM, trust_coeff=TRUST
    )
    return optimizer
