"""Heads trained on a frozen encoder's features by the KTH study's recipe: nothing is augmented and nothing is chosen.

The recipe is that of its code: AdamW with optax's decay, a fifth of the steps of warm-up, half a cosine, the last epoch
counts. Its images were masked in training and in test; here the encoder has seen all of every image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceptual_mae.evaluation.representation.probe_head import ROWS_AT_ONCE, ProbeHead
from perceptual_mae.evaluation.resumption import NO_CHECKPOINTS, Checkpointing, Trained
from perceptual_mae.schedules import learning_rate
from perceptual_mae.seeding import stream, stream_seed

EPOCHS, BATCH_SIZE = 50, 64
FIRST_RATE, PEAK_RATE, LAST_RATE, WARMUP_RATIO = 1e-4, 1e-3, 1e-5, 0.2
BETAS, WEIGHT_DECAY = (0.9, 0.999), 1e-4
MLP_RATIO = 2
"""The text gives its networks' ratio and no other; it says an MLP block, of which one has a hidden layer and GELU."""


def dense_head(width: int, num_classes: int) -> nn.Module:
    """Return LayerNorm and one linear layer."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))


def mlp_head(width: int, num_classes: int) -> nn.Module:
    """Return LayerNorm and an MLP whose hidden layer is twice as wide as the features."""
    hidden = MLP_RATIO * width
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, num_classes))


def linear_head(width: int, num_classes: int) -> nn.Module:
    """Return the head of a linear probe, for comparison: BatchNorm without affine part and one linear layer."""
    head = ProbeHead(width, num_classes)
    return nn.Sequential(head.norm, *head.copies())


HEADS: dict[str, Callable[[int, int], nn.Module]] = {"linear": linear_head, "dense": dense_head, "mlp": mlp_head}
"""name -> what is called with the width of the features and the number of classes."""


@dataclass(frozen=True)
class HeadScores:
    """Top-1 accuracies in [0, 1], and the one-hot agreements, which are no accuracies, of the same predictions."""

    accuracy: float
    train_accuracy: float
    agreement: float
    train_agreement: float


def train_and_score(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int,
    head: str = "mlp",
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    checkpointing: Checkpointing = NO_CHECKPOINTS,
) -> HeadScores:
    """Train a head on features (N, D) with labels (N,); score it on them and on test features (M, D), labels (M,)."""
    trained = train_head(
        features,
        labels,
        num_classes=num_classes,
        head=head,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        checkpointing=checkpointing,
    )
    predicted, test_predicted = predict(trained, features), predict(trained, test_features)
    return HeadScores(
        accuracy=_share(test_predicted == test_labels),
        train_accuracy=_share(predicted == labels),
        agreement=one_hot_agreement(test_predicted, test_labels, num_classes),
        train_agreement=one_hot_agreement(predicted, labels, num_classes),
    )


def train_head(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    head: str,
    epochs: int,
    batch_size: int,
    seed: int,
    checkpointing: Checkpointing = NO_CHECKPOINTS,
) -> nn.Module:
    """Return the head of that name after the last epoch, in evaluation mode; weights and order belong to the seed.

    The remainder that fills no batch is left out of an epoch. A training that `checkpointing` has goes on where it
    stopped.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed("trained head", seed))
        network = HEADS[head](features.shape[1], num_classes).to(features.device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, betas=BETAS, weight_decay=WEIGHT_DECAY)
    batch_size = min(batch_size, len(features))
    steps_per_epoch = len(features) // batch_size
    trained: Trained = {"head": network, "optimizer": optimizer}
    checkpointing.load(trained)
    first, total = checkpointing.kept.get("step", 0), epochs * steps_per_epoch
    for step in range(first, total):
        epoch, position = divmod(step, steps_per_epoch)
        if position == 0 or step == first:
            order = torch.randperm(len(features), generator=stream("probe order", seed, epoch)).to(features.device)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, total)
        chosen = order[position * batch_size : (position + 1) * batch_size]
        optimizer.zero_grad()
        F.cross_entropy(network(features[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        checkpointing.after_step(step + 1, total, trained, dict)
    return network.eval()


def rate(step: int, total_steps: int) -> float:
    """Return the learning rate of a step: 1e-4 up to 1e-3 over a fifth of the steps, half a cosine down to 1e-5."""
    above_first = learning_rate(
        step,
        peak=PEAK_RATE - FIRST_RATE,
        floor=LAST_RATE - FIRST_RATE,
        warmup_steps=int(WARMUP_RATIO * total_steps),
        total_steps=total_steps,
    )
    return FIRST_RATE + above_first


@torch.no_grad()
def predict(network: nn.Module, features: Tensor) -> Tensor:
    """Return the classes (N,) that a head sees in features (N, D)."""
    return torch.cat([network(rows).argmax(-1) for rows in torch.split(features, ROWS_AT_ONCE)])


def _share(right: Tensor) -> float:
    return int(right.sum()) / len(right)


ENTRIES_AT_ONCE = 1 << 24


def one_hot_agreement(predicted: Tensor, labels: Tensor, num_classes: int) -> float:
    """Return the share of equal entries of the one-hot vectors of classes (N,) and labels (N,), counted one by one."""
    rows = max(1, ENTRIES_AT_ONCE // num_classes)
    equal = 0
    for guess, truth in zip(torch.split(predicted, rows), torch.split(labels, rows), strict=True):
        equal += int((F.one_hot(guess, num_classes) == F.one_hot(truth, num_classes)).sum())
    return equal / (len(labels) * num_classes)


def accuracy_behind(agreement: float, num_classes: int) -> float:
    """Return the top-1 accuracy that a one-hot agreement over this number of classes stands for."""
    return 1 - num_classes / 2 * (1 - agreement)
