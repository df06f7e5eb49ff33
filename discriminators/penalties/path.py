"""Path length: how far features move for a step of the decoder's input.

The penalty is lazy: computed once in `every` steps and multiplied by `every`, so that its mean strength does not depend
on it (Analyzing and Improving the Image Quality of StyleGAN, section 3.1 and appendix B).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from discriminators.penalties.batch_share import check_batch_share, share_of_images
from discriminators.penalties.running_mean import RunningMean
from discriminators.precision import full_precision

Images = Sequence[Tensor]


class PathLength(RunningMean):
    """Path length: weight times the mean of (length - running mean)^2, from the decoder's input to features.

    The mean in a penalty is that of earlier applications: so neither micro-batches nor processes change a run. It
    starts at 0, and is divided by the weight its measurements have had so far (as Adam's are): otherwise the penalty
    would shrink all lengths for hundreds of steps before it evens them out. The first application only measures.

        loss = path_length(features, latent, noise)                        # once a micro-batch
        path_length.finish(lambda sums: accelerator.reduce(sums, "sum"))   # once a due step, on every process

    Options:
        weight: weight of the penalty; 0 is off [StyleGAN2]
        every: steps between two penalties, each multiplied by this number [StyleGAN2]
        decay: share of the latest lengths in the running mean, in (0, 1] [StyleGAN2]
        batch_share: share of the images of a step that it is computed on, in (0, 1], one at least; its cost is in
            proportion to it [StyleGAN2]
        target: end of the path: the discriminator's "features" of the clean fake pyramid, or the largest fake
            "image" itself [paper]

    Raises ValueError for options out of range.
    """

    def __init__(
        self,
        size: tuple[int, int],  # this and the next: the penalties' common signature
        batch_size: int,
        *,
        weight: float = 2.0,
        every: int = 4,
        decay: float = 0.01,
        batch_share: float = 0.5,
        target: Literal["features", "image"] = "features",
    ) -> None:
        if weight < 0 or every < 1 or not 0 < decay <= 1:
            raise ValueError(
                f"path_length needs weight >= 0, every >= 1 and 0 < decay <= 1, not {weight}, {every} and {decay}"
            )
        check_batch_share("path_length", batch_share)
        super().__init__(share=decay)
        self.weight, self.every, self.target, self.batch_share = weight, every, target, batch_share

    def is_due(self, step: int) -> bool:
        """Return whether the penalty is computed at this step, counted from 0."""
        return step % self.every == 0 and self.weight > 0

    def num_images(self, batch: int) -> int:
        """Return how many images of a micro-batch it is computed on."""
        return share_of_images(batch, self.batch_share)

    def __call__(self, features: Images, latent: Tensor, noise: Images) -> Tensor:
        """Return the penalty of a due step, times `every`; see `path_lengths` for shapes."""
        lengths = path_lengths(features, latent, noise)
        self.measure(lengths)
        strength = self.every * self.weight
        return strength * path_length(lengths, self.expected) if self.weighed else 0 * lengths.sum()


def path_lengths(features: Images, latent: Tensor, noise: Images) -> Tensor:
    """Return path lengths (B,), twice differentiable: sizes of random features' gradients at the decoder's input.

    features: (B, C_j, H_j, W_j), computed from latent (B, 1+L, d) with the mathematical attention kernel (others have
    no second derivative). noise: standard normal, of the features' shapes (`path_noise`). The length is the root of
    the mean over tokens of |d sum_j <f_j, y_j> / d token|^2, y_j = noise_j / sqrt(J N_j) with N_j numbers in f_j, as
    in Analyzing and Improving the Image Quality of StyleGAN, section 3.2, with tokens for styles.
    """
    with torch.autocast(latent.device.type, enabled=False):
        projections = [
            (feature * direction.to(feature)).sum() / (len(features) * feature[0].numel()) ** 0.5
            for feature, direction in zip(map(full_precision, features), noise, strict=True)
        ]
        projection = torch.stack(projections).sum()
        (gradient,) = torch.autograd.grad(projection, latent, create_graph=True)
        squares = full_precision(gradient).square().sum(dim=2).mean(dim=1)
        # The root has no slope at 0. Biases that only add to features are in no length: see `gradient_penalty`.
        return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt() + 0 * projection


def path_length(lengths: Tensor, mean: Tensor | float) -> Tensor:
    """Return the mean of (length - running mean)^2 over lengths (B,)."""
    return (lengths - mean).square().mean()


def path_noise(shapes: Sequence[Sequence[int]], generators: Sequence[torch.Generator]) -> tuple[Tensor, ...]:
    """Return standard normal noise (B, C_j, H_j, W_j) for shapes (C_j, H_j, W_j), image i from generators[i] alone."""
    of_images = [
        [torch.randn(*shape, generator=generator, device=generator.device) for shape in shapes]
        for generator in generators
    ]
    return tuple(torch.stack(fields) for fields in zip(*of_images, strict=True))


def lazy_adam(lr: float, betas: tuple[float, float], every: int) -> tuple[float, tuple[float, float]]:
    """Return Adam's rate and betas for an optimiser that takes a lazy penalty in a step of its own.

    With c = every / (every + 1) they are c lr and betas^c: the extra step in `every` then leaves the mean strides and
    memories as they were (Analyzing and Improving the Image Quality of StyleGAN, appendix B). R1 shares the
    discriminator's step and needs none of it.
    """
    share = every / (every + 1)
    return share * lr, (betas[0] ** share, betas[1] ** share)
