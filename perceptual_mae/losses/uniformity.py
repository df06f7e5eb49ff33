"""Uniformity of the encoder's features on the sphere (Wang and Isola 2020)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def uniformity(tokens: Tensor, *, sharpness: float = 2.0) -> Tensor:
    """Uniformity of features on the sphere: log of the mean over pairs of images of exp(-sharpness |u - v|^2).

    tokens: (B, 1+V, D) of the encoder, class token first; a feature is the mean of the other V, normalised to length 1.
    The largest value, 0, is where all features are equal; a batch of one has no gradient. Pairs are those of a
    micro-batch: over several micro-batches or processes the loss is the mean of theirs.

    Options:
        sharpness: factor on squared distances of features, above 0 [Wang and Isola 2020]

    Raises ValueError unless sharpness > 0.
    """
    if sharpness <= 0:
        raise ValueError(f"sharpness must be above 0, not {sharpness}")
    full = torch.promote_types(tokens.dtype, torch.float32)
    features = F.normalize(tokens[:, 1:].to(full).mean(dim=1), dim=1)
    if len(features) < 2:
        return 0 * features.sum()
    distances: Tensor = torch.pdist(features).square()
    return (-sharpness * distances).logsumexp(dim=0) - math.log(len(distances))
