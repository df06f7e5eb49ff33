"""Adaptive augmentation as a whole: identity, pairing, gradients of both orders, precision, options."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from ada_cases import generators, only, photo_like
from torch import nn

from discriminators import AUGMENTATIONS
from discriminators.augmentation.ada import ADA, augment
from discriminators.augmentation.controller import sign_sums
from discriminators.augmentation.draws import PIPELINES, Draws, draw
from discriminators.augmentation.wavelets import weigh_octaves
from discriminators.penalties import R1, r1
from discriminators.ramp import Ramp

EXECUTIONS = pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
OPERATIONS = {
    "flip": True,
    "rotate90": 1,
    "shift": [0.1, -0.07],
    "scale": 1.2,
    "rotate_pre": 0.4,
    "anisotropy": 1.3,
    "rotate_post": -0.5,
    "translate_fraction": [0.03, 0.11],
    "brightness": 0.2,
    "contrast": 1.4,
    "luma_flip": True,
    "hue": 1.0,
    "saturation": 2.0,
    "band_gains": [1.1, 0.5, 2.0, 0.7],
    "noise": 0.1,
    "cutout_size": 0.5,
}


def levels_of(images: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    return (images, *(F.avg_pool2d(images, 2**level) for level in range(1, count)))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_at_p_0_the_same_tensors_come_back(pipeline):
    ada = ADA([(32, 32)], 3, pipeline=pipeline)
    pyramid = levels_of(torch.rand(3, 3, 32, 32), 4)
    augmented = ada.apply(ada.draw(generators(3)), pyramid)
    assert all(before is after for before, after in zip(pyramid, augmented, strict=True))


@EXECUTIONS
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_changes_every_level_and_passes_a_gradient_back(operation, exact):
    pyramid = tuple(level.requires_grad_() for level in levels_of(photo_like(2, 3, 64, 48), 4))
    augmented = augment(only(2, **{operation: OPERATIONS[operation]}), pyramid, exact=exact)
    assert [level.shape for level in augmented] == [level.shape for level in pyramid]
    gradients = torch.autograd.grad(sum(level.square().sum() for level in augmented), pyramid)
    for before, after, gradient in zip(pyramid, augmented, gradients, strict=True):
        assert (before - after).abs().max() > 1e-3
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 1e-3


@EXECUTIONS
def test_an_image_that_nothing_moves_keeps_its_pixels_next_to_one_that_moves(exact):
    draws = only(3, rotate_post=0.4)
    draws = dataclasses.replace(draws, rotate_post=draws.rotate_post * torch.tensor([1.0, 0.0, 1.0]))
    pyramid = levels_of(photo_like(3, 3, 64, 64).requires_grad_(), 3)
    augmented = augment(draws, pyramid, exact=exact)
    alone = [augment(only(1, rotate_post=0.4), [level[2:] for level in pyramid], exact=exact)]
    for level, (before, after) in enumerate(zip(pyramid, augmented, strict=True)):
        torch.testing.assert_close(after[1], before[1], rtol=0, atol=1e-6)
        torch.testing.assert_close(after[2:], alone[0][level], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(after[0], before[0], atol=1e-2)


def test_names_of_operations_are_all_there_are():
    assert set(OPERATIONS) | {"noise_seed", "cutout_center"} == set(Draws.__dataclass_fields__)


@EXECUTIONS
@pytest.mark.parametrize(("size", "channels", "count"), [((32, 32), 3, 4), ((48, 64), 1, 1), ((16, 24), 3, 2)])
def test_any_size_and_number_of_levels_comes_out_finite_and_of_the_same_shape(size, channels, count, exact):
    pyramid = levels_of(torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0)), count)
    for pipeline in PIPELINES:
        shown = augment(draw(generators(2), 1.0, pipeline), pyramid, exact=exact)
        assert [level.shape for level in shown] == [level.shape for level in pyramid], pipeline
        assert all(level.isfinite().all() and level.dtype == torch.float32 for level in shown), pipeline


@EXECUTIONS
def test_one_draw_does_the_same_to_real_and_fake(exact):
    real = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    draws = draw(generators(4), 0.7, "bgcfnc")
    (first,), (second,) = augment(draws, (real,), exact=exact), augment(draws, (real.clone(),), exact=exact)
    assert torch.equal(first, second)
    other = augment(draw(generators(4, seed=1), 0.7, "bgcfnc"), (real,), exact=exact)[0]
    assert not torch.allclose(first, other, atol=0.1)


@EXECUTIONS
def test_an_image_is_augmented_alike_alone_and_in_a_batch(exact):
    pyramid = levels_of(photo_like(6, 3, 32, 32), 3)
    together = augment(draw(generators(6), 0.6, "bgcfnc"), pyramid, exact=exact)
    for index, generator in enumerate(generators(6)):
        part = slice(index, index + 1)
        alone = augment(draw([generator], 0.6, "bgcfnc"), tuple(level[part] for level in pyramid), exact=exact)
        for single, batch in zip(alone, together, strict=True):
            torch.testing.assert_close(single, batch[part], rtol=0, atol=1e-7)


@EXECUTIONS
def test_pixels_beyond_0_and_1_are_kept(exact):
    images = photo_like(1, 3, 32, 32)
    (augmented,) = augment(only(contrast=3.0, brightness=0.5), (images,), exact=exact)
    torch.testing.assert_close(augmented, 3 * images - 1 + 0.75)  # (3 (2x - 1 + 1/2) + 1) / 2
    assert augmented.min() < 0
    assert augmented.max() > 1


def test_a_filter_weighs_the_same_frequencies_on_all_levels():
    """On an image without its two highest octaves, of which two levels down there are none left to weigh."""
    images = photo_like(1, 3, 128, 128)
    for _ in range(3):
        images = weigh_octaves(images, torch.tensor([[1.0, 0.5, 0.0, 0.0]], dtype=torch.float64))
    pyramid = levels_of(images, 3)
    augmented = augment(only(band_gains=[0.8, 2.0, 1.6, 0.5]), pyramid, exact=False)
    for level, (before, after) in enumerate(zip(pyramid[1:], augmented[1:], strict=True), start=1):
        expected = F.avg_pool2d(augmented[0], 2**level)
        inside = (..., slice(8, -8), slice(8, -8))
        error, change = ((x - expected)[inside].square().mean().sqrt() for x in (after, before))
        assert error < 0.1 * change


def test_autocast_changes_nothing_and_half_precision_comes_back_as_it_came():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    draws = draw(generators(2), 1.0, "bgcfnc")
    for exact in (True, False):
        plain = augment(draws, (images,), exact=exact)[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(augment(draws, (images,), exact=exact)[0], plain)
        half = augment(draws, (images.bfloat16(),), exact=exact)[0]
        assert half.dtype == torch.bfloat16
        assert (half.float() - plain).abs().mean() < 0.02


@pytest.mark.parametrize(("exact", "size"), [(True, 32), (False, 6)])
def test_first_and_second_derivatives_are_those_of_finite_differences(exact, size):
    draws = draw(generators(1, seed=4), 1.0, "bgcfnc")
    images = photo_like(1, 3, size, size).requires_grad_()

    def shown(image: torch.Tensor) -> torch.Tensor:
        return augment(draws, (image,), exact=exact)[0].square()

    assert torch.autograd.gradcheck(shown, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(shown, images, fast_mode=True)


class Smooth(nn.Module):
    """A discriminator of two levels with a second derivative everywhere."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.kernels = nn.ParameterList(
            torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64) / 5 for _ in range(2)
        )
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, pyramid: tuple[torch.Tensor, ...]) -> torch.Tensor:
        maps = [F.softplus(F.conv2d(2 * x - 1, k)).mean((1, 2, 3)) for x, k in zip(pyramid, self.kernels, strict=True)]
        return maps[0] * maps[1] * 50 + self.bias


@EXECUTIONS
@pytest.mark.parametrize("leaf", ["received", "clean_image"])
def test_r1_through_ada_by_double_backward_is_a_finite_difference(exact, leaf):
    discriminator = Smooth()
    pyramid = levels_of(photo_like(3, 3, 32, 32), 2)
    draws = draw(generators(3), 0.8, "bgcfnc")
    penalty = R1((32, 32), 3, gamma=2.0, leaf=leaf)

    def loss() -> torch.Tensor:
        leaves, shown = penalty.require_input_gradients(pyramid, lambda levels: augment(draws, levels, exact=exact))
        return penalty(discriminator(shown), leaves)

    value = loss()
    assert value > 1e-3
    value.backward()
    for kernel in discriminator.kernels:
        direction = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        by_backward = (kernel.grad * direction).sum().item()
        step = 1e-5
        with torch.no_grad():
            kernel += step * direction
            above = loss_value(loss)
            kernel -= 2 * step * direction
            below = loss_value(loss)
            kernel += step * direction
        assert by_backward == pytest.approx((above - below) / (2 * step), rel=1e-6)
    assert discriminator.bias.grad.item() == 0


def loss_value(loss) -> float:
    with torch.enable_grad():
        return loss().item()


def test_r1_of_the_clean_image_is_that_of_a_loop_over_images():
    """The gradient at the image before flips and colours, image by image, with contrast 2 doubling it."""
    images = photo_like(2, 3, 16, 16)
    draws = only(2, contrast=2.0, flip=True)
    clean = R1((16, 16), 2, leaf="clean_image")
    leaves, shown = clean.require_input_gradients((images,), lambda x: augment(draws, x, exact=False))
    weights = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    penalty = r1((shown[0] * weights).sum((1, 2, 3)), leaves, gamma=1.0)
    assert penalty.item() == pytest.approx(0.5 * (2 * weights / 2).square().sum().item())


def test_execution_follows_the_size_unless_it_is_named():
    assert ADA([(32, 32)], 3).execution == "exact"
    assert ADA([(64, 64)], 3).execution == "fast"
    assert ADA([(224, 224)], 3, execution="exact").execution == "exact"


def test_p_rises_while_the_discriminator_is_sure_and_is_saved():
    ada = AUGMENTATIONS["ada"]([(32, 32)], 3, kimg=1.0)
    for _ in range(8):
        ada.controller.observe(sign_sums(torch.ones(50), 0.5), 50)
    assert ada.p == pytest.approx(0.4)
    again = ADA([(32, 32)], 3, kimg=1.0)
    again.load_state_dict(ada.state_dict())
    assert again.p == ada.p
    draws = ada.draw(generators(400))
    assert draws.flip.double().mean().item() == pytest.approx(0.2, abs=3 * math.sqrt(0.16 / 400))


def test_bad_options_and_foreign_images_are_refused():
    for options in ({"pipeline": "bgx"}, {"execution": "quick"}, {"target": 2.0}, {"p_max": 0.5, "initial_p": 0.6}):
        with pytest.raises(ValueError, match="ada"):
            ADA([(32, 32)], 3, **options)
    with pytest.raises(ValueError, match="not 4 channels; use bg"):
        ADA([(32, 32)], 4)
    ADA([(32, 32)], 4, pipeline="bg")
    with pytest.raises(ValueError, match="3 images but draws for 2"):
        ADA([(32, 32)], 3).apply(only(2), (torch.rand(3, 3, 32, 32),))


def test_a_scheduled_p_follows_its_ramp_and_the_controller_only_measures():
    ada = ADA([(32, 32)], 3, p=Ramp(start=0.0, end=0.55), kimg=1.0, interval=1)
    places = []
    for fraction in (0.0, 0.5, 1.0):
        ada.follow(fraction)
        ada.controller.observe(sign_sums(torch.ones(50), 0.5), 50)
        places.append(ada.p)
    assert places == pytest.approx([0, 0.275, 0.55])
    assert ada.controller.r_t == 1
    assert ada.controller.warning is None
    assert ADA([(32, 32)], 3, p=1.0).p == 1  # beyond p_max, which bounds the adaptive p
    adaptive = ADA([(32, 32)], 3, initial_p=0.3)
    adaptive.follow(0.7)
    assert adaptive.p == 0.3
    for p in (-0.1, Ramp(start=0.0, end=1.5)):
        with pytest.raises(ValueError, match=r"ada's p must stay in \[0, 1\], but goes from"):
            ADA([(32, 32)], 3, p=p)
