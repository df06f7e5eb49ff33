"""Colours, noise and holes of adaptive augmentation, worked by hand on pixels in [-1, 1]."""

import math

import pytest
import torch
import torch.nn.functional as F
from ada_cases import generators, only, photo_like

from discriminators.augmentation.ada import augment
from discriminators.augmentation.color import color_matrices, cut_out, noise_fields, recolor
from discriminators.augmentation.draws import draw

RED = torch.tensor([1.0, 0, 0], dtype=torch.float64).view(1, 3, 1, 1)


def colored(pixel: torch.Tensor, **operations: object) -> list[float]:
    return recolor(pixel, color_matrices(only(**operations))).flatten().tolist()


def test_brightness_adds_and_contrast_multiplies_after_it():
    pixel = torch.tensor([0.2, -0.4, 0.0], dtype=torch.float64).view(1, 3, 1, 1)
    assert colored(pixel, brightness=0.5) == pytest.approx([0.7, 0.1, 0.5])
    assert colored(pixel, contrast=2.0) == pytest.approx([0.4, -0.8, 0.0])
    assert colored(pixel, brightness=0.5, contrast=2.0) == pytest.approx([1.4, 0.2, 1.0])


def test_luma_flip_turns_the_grey_axis_round():
    assert colored(RED, luma_flip=True) == pytest.approx([1 / 3, -2 / 3, -2 / 3])
    grey = torch.full((1, 3, 1, 1), 0.3, dtype=torch.float64)
    assert colored(grey, luma_flip=True) == pytest.approx([-0.3] * 3)


def test_a_third_of_a_turn_of_hue_passes_red_on_to_green():
    assert colored(RED, hue=2 * math.pi / 3) == pytest.approx([0, 1, 0], abs=1e-12)
    assert colored(RED, hue=-2 * math.pi / 3) == pytest.approx([0, 0, 1], abs=1e-12)
    assert colored(RED, hue=math.pi) == pytest.approx([-1 / 3, 2 / 3, 2 / 3])


def test_saturation_spreads_colours_away_from_grey():
    assert colored(RED, saturation=0.0) == pytest.approx([1 / 3] * 3)
    assert colored(RED, saturation=2.0) == pytest.approx([5 / 3, -1 / 3, -1 / 3])


def test_operations_compose_in_order():
    """Brightness .1, contrast 2, luma flip, hue by a third, saturation 2, on red."""
    bright = [2.2, 0.2, 0.2]
    mean = sum(bright) / 3
    flipped = [value - 2 * mean for value in bright]
    turned = [flipped[2], flipped[0], flipped[1]]
    expected = [-mean + 2 * (value + mean) for value in turned]
    got = colored(RED, brightness=0.1, contrast=2.0, luma_flip=True, hue=2 * math.pi / 3, saturation=2.0)
    assert got == pytest.approx(expected)


def test_grey_images_keep_what_colours_do_to_grey():
    images = photo_like(3, 1, 8, 8)
    draws = draw(generators(3), 1.0, "color")
    matrices = color_matrices(draws)
    of_rgb = recolor(images.expand(-1, 3, -1, -1), matrices)
    torch.testing.assert_close(recolor(images, matrices), of_rgb.mean(dim=1, keepdim=True))


def test_all_levels_get_the_same_colours():
    images = photo_like(4, 3, 32, 32)
    draws = draw(generators(4), 1.0, "color")
    large, small = augment(draws, (images, F.avg_pool2d(images, 4)), exact=False)
    torch.testing.assert_close(F.avg_pool2d(large, 4), small)


def test_noise_has_its_std_and_is_pooled_for_lower_levels():
    images = torch.full((2, 3, 64, 64), 0.5, dtype=torch.float64)
    draws = only(2, noise=[0.2, 0.0], noise_seed=7)
    large, small = augment(draws, (images, F.avg_pool2d(images, 4)), exact=False)
    assert large[0].std().item() == pytest.approx(0.1, rel=0.03)  # half as much in [0, 1]
    torch.testing.assert_close(F.avg_pool2d(large, 4), small)
    assert torch.equal(large[1], images[1])
    assert torch.equal(noise_fields(draws, (3, 8, 8)), noise_fields(draws, (3, 8, 8)))
    other = noise_fields(only(2, noise=0.2, noise_seed=[7, 8]), (3, 8, 8))
    assert not torch.equal(other[0], other[1])


def test_a_hole_is_a_grey_square_of_half_the_sides_in_the_same_place_on_all_levels():
    images = torch.ones(1, 3, 32, 64, dtype=torch.float64)
    draws = only(cutout_size=0.5, cutout_center=[0.75, 0.25])
    large, small = augment(draws, (images, F.avg_pool2d(images, 4)), exact=False)
    expected = torch.ones(1, 3, 32, 64, dtype=torch.float64)
    expected[..., :16, 32:] = 0.5
    torch.testing.assert_close(large, expected)
    torch.testing.assert_close(small, F.avg_pool2d(expected, 4))
    beyond = cut_out(images, torch.zeros(1, 2), torch.tensor([0.5]))
    assert beyond.eq(0).double().mean().item() == pytest.approx(1 / 16)
