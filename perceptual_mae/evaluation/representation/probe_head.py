"""The head of a linear probe, BatchNorm without affine parameters and a linear map (MAE), and how it is fitted.

L-BFGS fits it to all cached features at once, SGD or LARS in batches. Shapes: N images, D features.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from perceptual_mae.evaluation.resumption import NO_CHECKPOINTS, Checkpointing, Trained
from perceptual_mae.schedules import learning_rate, set_learning_rate
from perceptual_mae.seeding import stream

EPSILON = 1e-6
INIT_STD = 0.01
ROWS_AT_ONCE = 1 << 16
MOMENTUM, TRUST = 0.9, 0.001  # MAE's probe
LOGITS_AT_ONCE = 1 << 25
"""Bounds the memory of one evaluation of the objective."""


class ProbeHead(nn.Module):
    """Logits (copies, B, classes) of features (B, D): `copies` linear maps, equal at the start, behind one BatchNorm.

    Copies are trained side by side with different settings; the BatchNorm has nothing to learn, so they share it.
    """

    def __init__(self, width: int, num_classes: int, *, copies: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=EPSILON, affine=False)
        self.linears = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(copies))
        weight = torch.empty(num_classes, width)
        nn.init.trunc_normal_(weight, std=INIT_STD, generator=stream("probe head", seed))
        for linear in self.copies():
            linear.weight.data.copy_(weight)
            linear.bias.data.zero_()

    def forward(self, features: Tensor) -> Tensor:
        copies = self.copies()
        weights = torch.cat([linear.weight for linear in copies])
        biases = torch.cat([linear.bias for linear in copies])
        logits = F.linear(self.norm(features), weights, biases)
        return logits.view(len(logits), len(copies), -1).transpose(0, 1)

    def copies(self) -> list[nn.Linear]:
        """Return the linear maps."""
        return [linear for linear in self.linears if isinstance(linear, nn.Linear)]

    def keep(self, copy: int) -> "ProbeHead":
        """Drop all copies but one and return the head, in evaluation mode."""
        self.linears = nn.ModuleList([self.linears[copy]])
        return self.eval()


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many images (B,) each copy gets right: of logits (copies, B, classes), int64 (copies,)."""
    return (logits.argmax(-1) == labels).sum(-1)


@torch.no_grad()
def accuracies(head: ProbeHead, features: Tensor, labels: Tensor) -> tuple[list[float], list[float]]:
    """Return each copy's top-1 accuracy in [0, 1] and mean cross-entropy on features (N, D), labels (N,)."""
    head.eval()
    correct = torch.zeros(len(head.linears), dtype=torch.int64, device=features.device)
    loss = torch.zeros(len(head.linears), dtype=torch.float64, device=features.device)
    for rows, wanted in zip(torch.split(features, ROWS_AT_ONCE), torch.split(labels, ROWS_AT_ONCE), strict=True):
        logits = head(rows)
        correct += count_correct(logits, wanted)
        per_image = F.cross_entropy(logits.flatten(0, 1), wanted.repeat(len(logits)), reduction="none")
        loss += per_image.view(len(logits), -1).double().sum(1)
    return (correct / len(labels)).tolist(), (loss / len(labels)).tolist()


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


def fit_lbfgs(
    linear: nn.Linear,
    features: Tensor,
    labels: Tensor,
    *,
    l2: float,
    iterations: int = 100,
    checkpointing: Checkpointing = NO_CHECKPOINTS,
) -> None:
    """Minimise mean cross-entropy + l2 / 2 * |weights|^2 over normalised features (N, D), from where `linear` stands.

    In scikit-learn's words C = 1 / (N l2); the bias is free. Where `checkpointing` was asked to stop, Interrupted ends
    it.
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
        checkpointing.check_stop(f"the fit of penalty {l2:g}")
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
    checkpointing: Checkpointing = NO_CHECKPOINTS,
) -> None:
    """Train copy i of the head with peak learning rate `rates[i]` ("sgd" or "lars"), half a cosine down to 0.

    All copies see the same batches, in an order drawn from the seed; the remainder that fills no batch is left out of
    an epoch. A training that `checkpointing` has goes on where it stopped.
    """
    build = {"sgd": sgd, "lars": lars}[optimizer]
    optimizers = [build(list(linear.parameters())) for linear in head.copies()]
    batch_size = min(batch_size, len(features))
    steps_per_epoch = len(features) // batch_size
    total = epochs * steps_per_epoch
    decay = partial(learning_rate, floor=0.0, warmup_steps=0, total_steps=total)
    trained: Trained = {"head": head, **{f"optimizer {copy}": each for copy, each in enumerate(optimizers)}}
    checkpointing.load(trained)
    first = checkpointing.kept.get("step", 0)
    head.train()
    for step in range(first, total):
        epoch, position = divmod(step, steps_per_epoch)
        if position == 0 or step == first:
            order = torch.randperm(len(features), generator=stream("probe order", seed, epoch)).to(features.device)
        chosen = order[position * batch_size : (position + 1) * batch_size]
        logits = head(features[chosen])
        wanted = labels[chosen].repeat(len(logits))
        loss = F.cross_entropy(logits.flatten(0, 1), wanted) * len(logits)  # the copies' losses do not mix
        head.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for descent, peak in zip(optimizers, rates, strict=True):
            set_learning_rate(descent, decay(step, peak=peak))
            descent.step()
        checkpointing.after_step(step + 1, total, trained, dict)


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
