"""Differentiable augmentation against its formulas, image by image."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ada_cases import generators, photo_like

from discriminators.augmentation.diffaug import DiffAug, DiffAugDraws

SIZE = (24, 40)


def neutral(count: int = 1) -> DiffAugDraws:
    """Draws that change nothing but cut out what the options say."""
    zeros = torch.zeros(count, dtype=torch.float64)
    return DiffAugDraws(zeros == 0, zeros, zeros + 1, zeros + 1, torch.stack([zeros, zeros], 1), torch.zeros(count, 2))


def reference(image: np.ndarray, numbers: np.ndarray, cutout: float) -> np.ndarray:
    """One image (C, H, W) in [0, 1] by loops and slices, from the 8 uniform numbers that it draws."""
    height, width = image.shape[1:]
    x = 2 * image - 1
    x = x + (numbers[1] - 0.5)
    x = x.mean(0) + 2 * numbers[2] * (x - x.mean(0))
    x = x.mean() + (0.5 + numbers[3]) * (x - x.mean())
    right = int(numbers[4] * (2 * (width // 8) + 1)) - width // 8
    down = int(numbers[5] * (2 * (height // 8) + 1)) - height // 8
    moved = np.zeros_like(x)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                moved[:, row, column] = x[:, row - down, column - right]
    for row in range(height):
        for column in range(width):
            far = max(abs(row + 0.5 - numbers[7] * height) / height, abs(column + 0.5 - numbers[6] * width) / width)
            if far < cutout / 2:
                moved[:, row, column] = 0
    return (moved + 1) / 2


def test_it_is_its_formulas_image_by_image():
    images = photo_like(6, 3, *SIZE)
    diffaug = DiffAug([SIZE], 3, cutout=0.3)
    (shown,) = diffaug.apply(diffaug.draw(generators(6)), (images,))
    numbers = [torch.rand(8, dtype=torch.float64, generator=each).numpy() for each in generators(6)]
    expected = [reference(image.numpy(), own, 0.3) for image, own in zip(images, numbers, strict=True)]
    torch.testing.assert_close(shown, torch.from_numpy(np.stack(expected)))
    assert shown.min() < 0  # never clamped


def test_neutral_draws_are_the_identity_and_so_is_colour_in_the_middle_of_its_draws():
    images = photo_like(2, 3, *SIZE)
    diffaug = DiffAug([SIZE], 3, policy=("color", "translation"))
    torch.testing.assert_close(diffaug.apply(neutral(2), (images,))[0], images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda count, dtype, generator: torch.full((count,), 0.5, dtype=dtype))
        middle = diffaug.draw(generators(1))
    assert [float(value) for value in (middle.brightness, middle.saturation, middle.contrast)] == [0, 1, 1]
    assert middle.shift.tolist() == [[0, 0]]
    assert middle.cutout_center.tolist() == [[0.5, 0.5]]


def test_saturation_goes_from_grey_to_twice_the_colour():
    images = photo_like(1, 3, *SIZE)
    color = DiffAug([SIZE], 3, policy=("color",))
    (grey,) = color.apply(dataclasses.replace(neutral(), saturation=torch.zeros(1)), (images,))
    torch.testing.assert_close(grey, images.mean(1, keepdim=True).expand_as(images))
    (vivid,) = color.apply(dataclasses.replace(neutral(), saturation=torch.full((1,), 2.0)), (images,))
    torch.testing.assert_close(vivid - grey, 2 * (images - grey))


def test_draws_stay_in_the_ranges_of_the_paper():
    diffaug = DiffAug([SIZE], 3)
    draws = diffaug.draw(generators(2000))
    strengths = ((draws.brightness, -0.5, 0.5), (draws.saturation, 0, 2), (draws.contrast, 0.5, 1.5))
    for values, low, high in (*strengths, (draws.cutout_center, 0, 1)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high >= values.max() > high - 0.01 * (high - low)
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.03)
    assert draws.acts.all()
    pixels = draws.shift * torch.tensor([SIZE[1], SIZE[0]])
    assert pixels[:, 0].unique().tolist() == pytest.approx(range(-5, 6))
    assert pixels[:, 1].unique().tolist() == pytest.approx(range(-3, 4))


def test_lower_levels_are_the_pooled_image_of_the_largest():
    images = photo_like(1, 3, 32, 64)
    levels = (images, F.avg_pool2d(images, 2), F.avg_pool2d(images, 4))
    whole = dataclasses.replace(
        neutral(),
        brightness=torch.tensor([0.2]),
        saturation=torch.tensor([1.7]),
        contrast=torch.tensor([0.6]),
        shift=torch.tensor([[4 / 64, -4 / 32]]),  # whole pixels at every level
        cutout_center=torch.tensor([[0.25, 0.75]]),
    )
    for policy in (("color",), ("translation",), ("cutout",), ("color", "translation", "cutout")):
        shown = DiffAug([(32, 64)], 3, policy=policy).apply(whole, levels)
        for level, lower in ((2, shown[1]), (4, shown[2])):
            torch.testing.assert_close(lower, F.avg_pool2d(shown[0], level), rtol=1e-6, atol=1e-6)


def test_between_pixels_lower_levels_are_shifted_bilinearly():
    images = photo_like(1, 3, 16, 16)
    draws = dataclasses.replace(neutral(), shift=torch.tensor([[1 / 32, 0]]))  # one pixel of 32, half of one of 16
    (shown,) = DiffAug([(32, 32)], 3, policy=("translation",)).apply(draws, (images,))
    expected = (2 * images - 1 + F.pad(2 * images - 1, (1, 0))[..., :-1]) / 2
    torch.testing.assert_close(shown, (expected + 1) / 2)


def test_images_that_are_not_augmented_keep_their_values():
    images = photo_like(400, 3, 8, 8)
    diffaug = DiffAug([(8, 8)], 3, probability=0.3)
    draws = diffaug.draw(generators(400))
    (shown,) = diffaug.apply(draws, (images,))
    kept = (shown == images).flatten(1).all(1)
    assert torch.equal(kept, ~draws.acts)
    assert 0.2 < 1 - kept.double().mean().item() < 0.4
    never = DiffAug([(8, 8)], 3, probability=0.0)
    assert never.apply(never.draw(generators(400)), (images,))[0] is images


@pytest.mark.parametrize(
    "options",
    [{"policy": ("colour",)}, {"policy": ()}, {"probability": 1.5}, {"cutout": 0.0}, {"translation": 1.0}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="diffaug"):
        DiffAug([(32, 32)], 3, **options)
