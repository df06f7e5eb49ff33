"""Adaptive discriminator augmentation of image pyramids (Training GANs with Limited Data)."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from discriminators.augmentation.color import color_matrices, cut_out, noise_fields, pool_to, recolor
from discriminators.augmentation.controller import Controller
from discriminators.augmentation.draws import PIPELINES, Draws, draw
from discriminators.augmentation.geometry import inverse_maps, move_exact, move_fast
from discriminators.augmentation.wavelets import weigh_octaves
from discriminators.placement import like, on_device
from discriminators.precision import full_precision
from discriminators.ramp import Ramp, range_of, value_at

Pipeline = Literal["blit", "geom", "color", "filter", "noise", "cutout", "bg", "bgc", "bgcf", "bgcfn", "bgcfnc"]
Execution = Literal["auto", "exact", "fast"]

SMALLEST_FAST = 64
"""Side in pixels from which "auto" is fast: wavelets would cost as much as a step, and bilinear sampling suffices."""


class ADA:
    """Adaptive discriminator augmentation: random operations on all that the discriminator is shown.

    Their probability p rises while the discriminator is too sure of real images, or follows a schedule. Draw once,
    apply to every level of real and fake that are to be compared:

        draws = ada.draw(generators)                       # one torch.Generator an image
        real, fake = ada.apply(draws, real), ada.apply(draws, fake)
        ada.controller.observe(sign_sums(real_logits, center), num_images)

    Options:
        pipeline: groups of operations: b blit, g geometry, c colour, f filter, n noise, last c cutout [StyleGAN2-ADA]
        execution: "exact" resamples through wavelets, "fast" bilinearly; "auto" is exact below 64 pixels [ours]
        target: mean sign of real logits that p holds, in (-1, 1); null keeps p at initial_p [StyleGAN2-ADA]
        interval: steps between two changes of p [StyleGAN2-ADA]
        kimg: thousands of images in which p can go from 0 to 1 [StyleGAN2-ADA]
        p_max: largest p allowed, in [0, 1]; NVIDIA sets no bound [ours]
        initial_p: probability of each operation at the start, in [0, p_max] [StyleGAN2-ADA]
        p: probability of each operation in [0, 1], a number or a ramp over the run, as in R3GAN; target, kimg, p_max
            and initial_p then decide nothing. null: adaptive [StyleGAN2-ADA]

    Raises ValueError for options out of range and for colours of images that are neither grey nor RGB.
    """

    def __init__(
        self,
        resolutions: Sequence[tuple[int, int]],
        channels: int,
        *,
        pipeline: Pipeline = "bgc",
        execution: Execution = "auto",
        target: float | None = 0.6,
        interval: int = 4,
        kimg: float = 500.0,
        p_max: float = 0.85,
        initial_p: float = 0.0,
        p: float | Ramp | None = None,
    ) -> None:
        if pipeline not in PIPELINES:
            raise ValueError(f"unknown pipeline {pipeline!r} of ada; choose from: {', '.join(PIPELINES)}")
        if execution not in ("auto", "exact", "fast"):
            raise ValueError(f"unknown execution {execution!r} of ada; choose from: auto, exact, fast")
        if "color" in PIPELINES[pipeline] and channels not in (1, 3):
            raise ValueError(f"ada's pipeline {pipeline} recolours grey or RGB images, not {channels} channels; use bg")
        automatic = "exact" if min(resolutions[0]) < SMALLEST_FAST else "fast"
        self.execution = automatic if execution == "auto" else execution
        self.pipeline = pipeline
        self.controller, self.scheduled_p = Controller(target, interval, kimg, p_max, initial_p), p
        if p is not None:
            lowest, largest = range_of(p)
            if not 0 <= lowest <= largest <= 1:
                raise ValueError(f"ada's p must stay in [0, 1], but goes from {lowest:g} to {largest:g}")
            self.controller = Controller(None, interval, kimg, p_max=1.0, initial_p=value_at(p, 0.0))

    @property
    def p(self) -> float:
        """Return the probability of each operation at this step."""
        return self.controller.p

    def follow(self, fraction: float) -> None:
        """Set p for a step, where it is scheduled; `fraction` is the share of the run's steps already taken."""
        if self.scheduled_p is not None:
            self.controller.p = value_at(self.scheduled_p, fraction)

    def draw(self, generators: Sequence[torch.Generator]) -> Draws:
        """Return the operations on len(generators) images at the present p; image i draws from generators[i] alone."""
        return draw(generators, self.p, self.pipeline)

    def apply(self, draws: Draws, pyramid: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the augmented levels (B, C, H_s, W_s); see `augment`."""
        return augment(draws, pyramid, exact=self.execution == "exact")

    def state_dict(self) -> dict[str, Tensor]:
        """Return p and the controller's statistics."""
        return self.controller.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.controller.load_state_dict(state)


def augment(draws: Draws, pyramid: Sequence[Tensor], *, exact: bool) -> tuple[Tensor, ...]:
    """Apply the same operations to all levels of a pyramid (B, C, H_s, W_s), largest first, of images in [0, 1].

    Results may leave [0, 1]: they are never clamped. Twice differentiable in the images. Computes in float32 or
    wider, under autocast too, and returns the dtype it was given. Operations that act on no image are skipped; with
    none at all the same tensors are returned.
    Raises ValueError unless there is a draw for each image.
    """
    if len(draws) != len(pyramid[0]):
        raise ValueError(f"got {len(pyramid[0])} images but draws for {len(draws)}; draw with one generator an image")
    size = (pyramid[0].shape[-2], pyramid[0].shape[-1])
    moved = draws.moves.nonzero().flatten()  # at a small p, few of a batch: the others keep their pixels
    maps = inverse_maps(draws, size)[moved] if len(moved) else None
    moved = on_device(moved, pyramid[0].device)
    colors = color_matrices(draws) if draws.recolors.any() else None
    gains = draws.band_gains if draws.filters.any() else None
    noisy, cut = bool(draws.noise.any()), bool(draws.cutout_size.any())
    if maps is None and colors is None and gains is None and not noisy and not cut:
        return tuple(pyramid)

    noise = noise_fields(draws, (pyramid[0].shape[1], *size)) if noisy else None
    levels: list[Tensor] = []
    for images in pyramid:
        with torch.autocast(images.device.type, enabled=False):
            level = 2 * full_precision(images) - 1
            if maps is not None:
                level = _move(level, maps, moved, exact=exact)
            if colors is not None:
                level = recolor(level, colors)
            if gains is not None:
                # A level of half the size has no highest octave: its own highest is the next lower one.
                octaves_lost = round(math.log2(size[0] / images.shape[-2]))
                level = weigh_octaves(level, gains[:, : max(1, gains.shape[1] - octaves_lost)])
            if noise is not None:
                level = level + pool_to(like(noise, level), (level.shape[-2], level.shape[-1]))
            if cut:
                level = cut_out(level, draws.cutout_center, draws.cutout_size)
            levels.append(((level + 1) / 2).to(images.dtype))
    return tuple(levels)


def _move(images: Tensor, maps: Tensor, moved: Tensor, *, exact: bool) -> Tensor:
    """Resample the images with indices `moved`, of (B, C, H, W), by their maps (len(moved), 2, 3); leave the others."""
    move = move_exact if exact else move_fast
    if len(moved) == len(images):
        return move(images, maps)
    return images.index_copy(0, moved, move(images.index_select(0, moved), maps))
