"""Weighted nearest-neighbour classification of frozen features, as DINO evaluates it: nothing is trained."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
SIMILARITIES_AT_ONCE = 1 << 26


@torch.no_grad()
def knn_accuracies(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> dict[int, float]:
    """Return top-1 accuracy in [0, 1] for each number of neighbours that does not exceed the training features.

    The k training features (N, D) of the greatest cosine similarity s to a test feature vote for their class with
    weight exp(s / temperature), all divided by the largest possible one so that none overflows. Everything is float32.
    Raises ValueError where N is below every k.
    """
    counts = sorted(count for count in set(neighbours) if 1 <= count <= len(features))
    if not counts:
        raise ValueError(f"{len(features)} training features hold no {min(neighbours)} neighbours; ask for fewer")
    keys = F.normalize(features.float(), dim=1)
    num_classes = int(labels.max()) + 1
    hits = torch.zeros(len(counts), dtype=torch.int64, device=features.device)
    rows = max(1, SIMILARITIES_AT_ONCE // len(keys))
    for part, wanted in zip(torch.split(test_features, rows), torch.split(test_labels, rows), strict=True):
        similarities, nearest = (F.normalize(part.float(), dim=1) @ keys.T).topk(counts[-1])
        weights, classes = ((similarities - 1) / temperature).exp(), labels[nearest]
        votes, first = weights.new_zeros(len(part), num_classes), 0
        for position, count in enumerate(counts):
            votes.scatter_add_(1, classes[:, first:count], weights[:, first:count])
            hits[position] += (votes.argmax(1) == wanted).sum()
            first = count
    return dict(zip(counts, (hits / len(test_labels)).tolist(), strict=True))
