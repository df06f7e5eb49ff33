"""Gradient penalties: R1 on what the discriminator receives, and path length from the decoder's input to features.

Both are lazy: computed once in `every` steps and multiplied by `every`, so that their mean strength does not depend on
it (Analyzing and Improving the Image Quality of StyleGAN, section 3.1 and appendix B).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Images = Sequence[Tensor]


class R1:
    """R1: gamma / 2 times the squared gradient of real logits at the images.

    From Which Training Methods for GANs do actually Converge? (Mescheder et al. 2018).

        leaves, shown = r1.require_input_gradients(real, lambda pyramid: ada.apply(draws, pyramid))
        loss = r1(discriminator(shown).logits, leaves)

    Options:
        gamma: weight of the penalty; "auto" is 0.0002 x pixels / images of the global batch [StyleGAN2-ADA]
        every: steps between two penalties, each multiplied by this number [StyleGAN2]
        leaf: images the gradient is taken at: those "received" by the discriminator, or the "clean_image" before
            pooling and augmentation [ours]

    Raises ValueError for options out of range.
    """

    def __init__(
        self,
        size: tuple[int, int],
        batch_size: int,
        *,
        gamma: float | Literal["auto"] = "auto",
        every: int = 16,
        leaf: Literal["received", "clean_image"] = "received",
    ) -> None:
        if gamma != "auto" and gamma < 0:
            raise ValueError(f"r1's gamma {gamma} is negative; use auto or a number such as 0.01")
        if every < 1:
            raise ValueError(f"r1's every {every} must be at least 1 step")
        self.gamma = auto_gamma(size, batch_size) if gamma == "auto" else gamma
        self.every, self.leaf = every, leaf

    def is_due(self, step: int) -> bool:
        """Return whether the penalty is computed at this step, counted from 0."""
        return step % self.every == 0 and self.gamma > 0

    def require_input_gradients(
        self, real: Images, augment: Callable[[Images], Images] = tuple
    ) -> tuple[Images, Images]:
        """Return the leaves and the pyramid for the discriminator, of clean images (B, C, H_s, W_s), largest first."""
        if self.leaf == "received":
            leaves = tuple(level.detach().requires_grad_() for level in augment(real))
            return leaves, leaves
        image = real[0].detach().requires_grad_()
        sizes = [(level.shape[-2], level.shape[-1]) for level in real[1:]]
        return (image,), augment((image, *(F.adaptive_avg_pool2d(image, size) for size in sizes)))

    def __call__(self, real_logits: Tensor, leaves: Images) -> Tensor:
        """Return the penalty of a due step, times `every`, of logits (B, ...) and leaves (B, C, H_s, W_s); see `r1`."""
        return self.every * r1(real_logits, leaves, self.gamma)


class PathLength:
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
        target: Literal["features", "image"] = "features",
    ) -> None:
        if weight < 0 or every < 1 or not 0 < decay <= 1:
            raise ValueError(
                f"path_length needs weight >= 0, every >= 1 and 0 < decay <= 1, not {weight}, {every} and {decay}"
            )
        self.weight, self.every, self.decay, self.target = weight, every, decay, target
        self.mean, self.weighed = torch.zeros(()), torch.zeros((), dtype=torch.float64)  # the latter goes to 1
        self._sums: Tensor | None = None

    def is_due(self, step: int) -> bool:
        """Return whether the penalty is computed at this step, counted from 0."""
        return step % self.every == 0 and self.weight > 0

    def __call__(self, features: Images, latent: Tensor, noise: Images) -> Tensor:
        """Return the penalty of a due step, times `every`; see `path_lengths` for shapes."""
        lengths = path_lengths(features, latent, noise)
        with torch.no_grad():
            sums = torch.stack([lengths.sum(), torch.full_like(lengths.sum(), len(lengths))])
            self._sums = sums if self._sums is None else self._sums + sums
        strength = self.every * self.weight
        return strength * path_length(lengths, self.expected) if self.weighed else 0 * lengths.sum()

    @property
    def expected(self) -> Tensor:
        """The running mean of lengths, a scalar, towards which the penalty draws them."""
        return self.mean / self.weighed

    def finish(self, reduce_sum: Callable[[Tensor], Tensor] = lambda sums: sums) -> None:
        """Move the running mean towards the mean length of this step; `reduce_sum` adds tensors (2,) over processes."""
        if self._sums is None:
            return
        total, count = reduce_sum(self._sums).unbind()
        self.mean = torch.lerp(self.mean.to(total), total / count, self.decay)
        self.weighed = 1 - (1 - self.weighed) * (1 - self.decay)
        self._sums = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running mean and its divisor, the same on every process."""
        return {"mean": self.mean, "weighed": self.weighed}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.mean, self.weighed = state["mean"].clone(), state["weighed"].clone()


PENALTIES: dict[str, Callable[..., R1] | Callable[..., PathLength]] = {"r1": R1, "path_length": PathLength}


def r1(real_logits: Tensor, leaves: Images, gamma: float) -> Tensor:
    """Return gamma / 2 * mean over images of the sum over levels of |d logits / d level|^2 / k^2, in float32 or wider.

    real_logits: (B, ...), summed over each image. leaves: images (B, C, H, W) in [0, 1], largest first,
    that the logits were computed from; gradients count in units of [-1, 1], half as large. k is how much smaller a
    level is than the first: a gradient sent back through average pooling by k is its square over k^2, so the sum is
    the penalty at the full-size image, up to the products of levels. The discriminator may ignore any level.
    """
    if not all(level.requires_grad for level in leaves):
        raise ValueError("R1 needs images that require a gradient; take them from R1.require_input_gradients")
    with torch.autocast(real_logits.device.type, enabled=False):
        gradients = torch.autograd.grad(real_logits.sum(), tuple(leaves), create_graph=True, allow_unused=True)
        # The last bias is in no gradient, but needs one of its own where processes wait for all gradients.
        penalty = 0 * _full(real_logits).sum()
        for level, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                shrunk = leaves[0].shape[-1] / level.shape[-1]
                square = _full(gradient).square().sum() / (4 * shrunk**2)
                penalty = penalty + gamma / 2 * square / len(level)
    return penalty


def auto_gamma(size: tuple[int, int], batch_size: int) -> float:
    """Return the R1 weight for an image size (H, W) and a global batch (Training GANs with Limited Data)."""
    return 0.0002 * size[0] * size[1] / batch_size


def path_lengths(features: Images, latent: Tensor, noise: Images) -> Tensor:
    """Return path lengths (B,), twice differentiable: sizes of random features' gradients at the decoder's input.

    features: (B, C_j, H_j, W_j), computed from latent (B, 1+L, d) with the mathematical attention kernel (others have
    no second derivative). noise: standard normal, of the features' shapes (`path_noise`). The length is the root of
    the mean over tokens of |d sum_j <f_j, y_j> / d token|^2, y_j = noise_j / sqrt(J N_j) with N_j numbers in f_j, as
    in Analyzing and Improving the Image Quality of StyleGAN, section 3.2, with tokens for styles.
    """
    with torch.autocast(latent.device.type, enabled=False):
        projections = [
            (_full(feature) * direction.to(_full(feature))).sum() / (len(features) * feature[0].numel()) ** 0.5
            for feature, direction in zip(features, noise, strict=True)
        ]
        projection = torch.stack(projections).sum()
        (gradient,) = torch.autograd.grad(projection, latent, create_graph=True)
        squares = _full(gradient).square().sum(dim=2).mean(dim=1)
        # The root has no slope at 0. Biases that only add to features are in no length: see r1.
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


def _full(tensor: Tensor) -> Tensor:
    """Return a tensor of any shape in float32 or wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
