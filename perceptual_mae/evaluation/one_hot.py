"""Another study's reading of a classifier: how many entries of one-hot vectors agree. It is no accuracy.

Over K classes two one-hot vectors of a wrong prediction still agree in K - 2 places, so that a top-1 accuracy a reads
1 - 2/K (1 - a): a constant guess among ten balanced classes reads 0.82 (KTH MAE).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

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
