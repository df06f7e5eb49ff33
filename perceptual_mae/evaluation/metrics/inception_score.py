"""The Inception Score: how sure a classifier is of each image, and how varied its answers are over all of them.

Salimans et al., *Improved Techniques for Training GANs*: exp(mean of KL(p(y|x) || p(y))), over parts of the images,
with mean and deviation of the parts. Of reconstructions it comes up to that of the originals, which is reported, too.
"""

import statistics

import torch
from torch import Tensor

from perceptual_mae.seeding import stream

SPLITS = 10
FEWEST_IMAGES = 2 * SPLITS


def inception_score(probabilities: Tensor, *, splits: int = SPLITS, seed: int = 0) -> tuple[float, float]:
    """Return mean and deviation (of the population) over `splits` parts of probabilities (N, K) whose rows sum to 1.

    The images are shuffled first, the same way for every set of N: data sets are often sorted by class, and a part with
    one class has a score of 1. ValueError where a part would be empty.
    """
    num_images = len(probabilities)
    if num_images < splits:
        raise ValueError(f"{num_images} images cannot be cut into {splits} parts")
    order = torch.randperm(num_images, generator=stream("inception_score", seed, num_images))
    scores = []
    for part in range(splits):
        chosen = order[part * num_images // splits : (part + 1) * num_images // splits]
        rows = probabilities[chosen.to(probabilities.device)].double()
        # 0 log 0 is 0; a class that no image has drops out of both entropies.
        certain = torch.xlogy(rows, rows).sum(1).mean()
        varied = torch.xlogy(rows.mean(0), rows.mean(0)).sum()
        scores.append(float((certain - varied).exp()))
    return statistics.fmean(scores), statistics.pstdev(scores)
