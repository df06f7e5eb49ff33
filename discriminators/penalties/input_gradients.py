"""Penalties on the gradient of logits at the images: R1 at real ones, R2 at fake ones.

Both may be lazy: computed once in `every` steps and multiplied by `every`, so that their mean strength does not depend
on it (Analyzing and Improving the Image Quality of StyleGAN, section 3.1).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from discriminators.penalties.batch_share import check_batch_share, share_of_images
from discriminators.precision import full_precision
from discriminators.ramp import Ramp, range_of, value_at

Images = Sequence[Tensor]


class _GradientPenalty:
    """gamma / 2 times the squared gradient of logits at images, once in `every` steps."""

    def __init__(
        self,
        size: tuple[int, int],
        batch_size: int,
        *,
        gamma: float | Literal["auto"] | Ramp = "auto",
        every: int = 16,
        batch_share: float = 1.0,
    ) -> None:
        name = type(self).__name__.lower()
        self.gamma = auto_gamma(size, batch_size) if gamma == "auto" else gamma
        lowest, self._largest = range_of(self.gamma)
        if lowest < 0:
            raise ValueError(f"{name}'s gamma {lowest:g} is negative; use auto or a number such as 0.01")
        if every < 1:
            raise ValueError(f"{name}'s every {every} must be at least 1 step")
        check_batch_share(name, batch_share)
        self.every, self.batch_share = every, batch_share

    def is_due(self, step: int) -> bool:
        """Return whether the penalty is computed at this step, counted from 0."""
        return step % self.every == 0 and self._largest > 0

    def part(self, images: Images) -> tuple[Tensor, ...]:
        """Return leaves: of levels (B, C, H_s, W_s) those images that it is computed on, the first ones, detached.

        Where they are not all of the batch, their logits come from a pass of their own: a gradient through the pass of
        all images would cost as much as that of all.
        """
        first = share_of_images(len(images[0]), self.batch_share)
        return tuple(level[:first].detach().requires_grad_() for level in images)

    def __call__(self, logits: Tensor, leaves: Images, fraction: float = 0.0) -> Tensor:
        """Return the penalty of a due step, times `every`, of logits (B, ...) and leaves (B, C, H_s, W_s).

        fraction: share of the run's steps already taken, along which gamma may move. See `gradient_penalty`.
        """
        return self.every * gradient_penalty(logits, leaves, value_at(self.gamma, fraction))


class R1(_GradientPenalty):
    """R1: gamma / 2 times the squared gradient of real logits at the images.

    From Which Training Methods for GANs do actually Converge? (Mescheder et al. 2018).

        leaves, shown = r1.require_input_gradients(real, lambda pyramid: ada.apply(draws, pyramid))
        loss = r1(discriminator(shown).logits, leaves)

    Options:
        gamma: weight of the penalty, or a ramp of it; "auto" is 0.0002 x pixels / images of the global batch
            [StyleGAN2-ADA]
        every: updates of the discriminator from one penalty to the next, each multiplied by this number [StyleGAN2]
        leaf: images the gradient is taken at: those "received" by the discriminator, or the "clean_image" before
            pooling and augmentation; that of a share of the batch is "received" [ours]
        batch_share: share of the images of a step that it is computed on, in (0, 1], one at least. Below 1 these have a
            pass of their own, six forward passes in all; those of 1 are three, so it is cheaper below 1/2 [ours]

    Raises ValueError for options out of range and for those that do not go together.
    """

    def __init__(
        self,
        size: tuple[int, int],
        batch_size: int,
        *,
        gamma: float | Literal["auto"] | Ramp = "auto",
        every: int = 16,
        leaf: Literal["received", "clean_image"] = "received",
        batch_share: float = 1.0,
    ) -> None:
        super().__init__(size, batch_size, gamma=gamma, every=every, batch_share=batch_share)
        if leaf == "clean_image" and batch_share < 1:
            raise ValueError(f"r1 at the clean_image takes the whole batch, not a batch_share of {batch_share:g}")
        self.leaf = leaf

    def require_input_gradients(
        self, real: Images, augment: Callable[[Images], Images] = tuple
    ) -> tuple[Images, Images]:
        """Return the leaves and the pyramid for the discriminator, of clean images (B, C, H_s, W_s), largest first.

        With a `batch_share` below 1 the leaves are those of `part`, and the penalty is that of their own logits.
        """
        if self.batch_share < 1:
            shown = tuple(augment(real))
            return self.part(shown), shown
        if self.leaf == "received":
            leaves = tuple(level.detach().requires_grad_() for level in augment(real))
            return leaves, leaves
        image = real[0].detach().requires_grad_()
        sizes = [(level.shape[-2], level.shape[-1]) for level in real[1:]]
        return (image,), augment((image, *(F.adaptive_avg_pool2d(image, size) for size in sizes)))


class R2(_GradientPenalty):
    """R2: gamma / 2 times the squared gradient of fake logits at the images that the discriminator receives.

    From Which Training Methods for GANs do actually Converge? (Mescheder et al. 2018). With R1 and relativistic pairs
    it is the regularisation of R3GAN, which takes both in every step.

        leaves = leaves_of(ada.apply(draws, fake))
        loss = r2(discriminator(leaves).logits, leaves)

    Options:
        gamma: weight of the penalty, or a ramp of it; "auto" is 0.0002 x pixels / images of the global batch [ours]
        every: updates of the discriminator from one penalty to the next, each multiplied by this number; R3GAN's is 1
            [ours]
        batch_share: share of the images of a step that it is computed on, in (0, 1], one at least. Below 1 these have a
            pass of their own, six forward passes in all; those of 1 are three, so it is cheaper below 1/2 [ours]

    Raises ValueError for options out of range.
    """


def leaves_of(levels: Images) -> tuple[Tensor, ...]:
    """Return the levels (B, C, H_s, W_s) of a pyramid, each as a new node of the graph that requires a gradient.

    The gradient at a level is then its own, though other levels may be pooled from it. A level that requires a gradient
    keeps its graph; any other is detached.
    """
    return tuple(level.view_as(level) if level.requires_grad else level.detach().requires_grad_() for level in levels)


def gradient_penalty(logits: Tensor, leaves: Images, gamma: float) -> Tensor:
    """Return gamma / 2 * mean over images of the sum over levels of |d logits / d level|^2 / k^2, in float32 or wider.

    logits: (B, ...), summed over each image. leaves: images (B, C, H, W) in [0, 1], largest first,
    that the logits were computed from; gradients count in units of [-1, 1], half as large. k is how much smaller a
    level is than the first: a gradient sent back through average pooling by k is its square over k^2, so the sum is
    the penalty at the full-size image, up to the products of levels. The discriminator may ignore any level.
    """
    if not all(level.requires_grad for level in leaves):
        raise ValueError(
            "a gradient penalty needs images that require a gradient; "
            "take them from R1.require_input_gradients or leaves_of"
        )
    with torch.autocast(logits.device.type, enabled=False):
        gradients = torch.autograd.grad(logits.sum(), tuple(leaves), create_graph=True, allow_unused=True)
        # The last bias is in no gradient, but needs one of its own where processes wait for all gradients.
        penalty = 0 * full_precision(logits).sum()
        for level, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                shrunk = leaves[0].shape[-1] / level.shape[-1]
                square = full_precision(gradient).square().sum() / (4 * shrunk**2)
                penalty = penalty + gamma / 2 * square / len(level)
    return penalty


r1 = gradient_penalty
"""Its name at real images."""


def auto_gamma(size: tuple[int, int], batch_size: int) -> float:
    """Return the R1 weight for an image size (H, W) and a global batch (Training GANs with Limited Data)."""
    return 0.0002 * size[0] * size[1] / batch_size
