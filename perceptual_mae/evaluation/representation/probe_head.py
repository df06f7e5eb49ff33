"""The head of a linear probe: BatchNorm without affine parameters, then a linear map (MAE)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceptual_mae.seeding import stream

EPSILON = 1e-6
INIT_STD = 0.01
ROWS_AT_ONCE = 1 << 16


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
