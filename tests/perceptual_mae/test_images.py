"""The image contract: patches, pyramids, composites, bytes."""

import pytest
import torch
import torch.nn.functional as F

from perceptual_mae.images import (
    check_unit_range,
    composite,
    mask_image,
    patchify,
    pyramid,
    resolutions,
    to_uint8,
    unpatchify,
)


@pytest.mark.parametrize(
    ("channels", "size", "patch_size"), [(3, (32, 32), 4), (1, (96, 64), 16), (5, (8, 12), 2), (3, (28, 28), 14)]
)
def test_unpatchify_undoes_patchify(channels, size, patch_size):
    images = torch.rand(2, channels, *size)
    grid = (size[0] // patch_size, size[1] // patch_size)
    patches = patchify(images, patch_size)
    assert patches.shape == (2, grid[0] * grid[1], patch_size**2 * channels)
    assert torch.equal(unpatchify(patches, patch_size, grid), images)


def test_patches_run_row_by_row_and_hold_row_column_channel():
    image = torch.arange(2 * 4 * 6).view(1, 2, 4, 6)  # value = 24 * channel + 6 * row + column
    patches = patchify(image, 2)[0]
    assert patches[:, 0].tolist() == [0, 2, 4, 12, 14, 16], "first value of a patch: its top left pixel, channel 0"
    assert patches[1].tolist() == [2, 26, 3, 27, 8, 32, 9, 33]


def test_patchify_agrees_with_unfold():
    images = torch.rand(2, 3, 8, 12)
    unfolded = F.unfold(images, 4, stride=4).view(2, 3, 16, 6).permute(0, 3, 2, 1).flatten(2)
    assert torch.equal(patchify(images, 4), unfolded)


@pytest.mark.parametrize(
    ("side", "sides"),
    [
        (224, [224, 112, 56, 28, 14, 7]),
        (192, [192, 96, 48, 24, 12, 6]),
        (128, [128, 64, 32, 16, 8, 4]),
        (96, [96, 48, 24, 12, 6]),
        (64, [64, 32, 16, 8, 4]),
        (32, [32, 16, 8, 4]),
        (6, [6]),
    ],
)
def test_pyramid_halves_the_side_while_it_is_at_least_8(side, sides):
    assert resolutions((side, side)) == tuple((side, side) for side in sides)


def test_shorter_side_decides_the_number_of_levels():
    assert resolutions((96, 64)) == ((96, 64), (48, 32), (24, 16), (12, 8), (6, 4))


@pytest.mark.parametrize("size", [(100, 100), (32, 36)])
def test_sizes_that_do_not_halve_are_refused(size):
    with pytest.raises(ValueError, match="cannot be halved"):
        resolutions(size)


def test_pyramid_averages_two_by_two():
    image = torch.tensor([[0.0, 1.0, 0.2, 0.2], [1.0, 0.0, 0.4, 0.4]]).view(1, 1, 2, 4)
    levels = pyramid(image, 2)
    assert torch.equal(levels[0], image)
    torch.testing.assert_close(levels[1], torch.tensor([[[[0.5, 0.3]]]]))


def test_mask_spreads_over_pixels_and_averages_below_the_grid():
    mask = torch.tensor([[True, False, False, True, False, False, False, False]])  # 2 rows of 4
    pixels = mask_image(mask, (2, 4), (4, 8))[0, 0]
    assert pixels[:2, :2].min() == 1
    assert pixels[:2, 2:6].max() == 0
    assert pixels.sum() == 8
    torch.testing.assert_close(mask_image(mask, (2, 4), (1, 2)), torch.tensor([[[[0.25, 0.25]]]]))


def test_composite_takes_each_pixel_from_its_own_side_exactly():
    real, fake = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4) * 3 - 1
    hidden = (torch.rand(2, 1, 4, 4) > 0.5).float()
    assert torch.equal(composite(real, fake, hidden), torch.where(hidden.bool(), fake, real))


def test_bytes_are_clamped_and_rounded():
    assert to_uint8(torch.tensor([-0.5, 0.0, 0.5, 0.999, 1.0, 7.0])).tolist() == [0, 0, 128, 255, 255, 255]


def test_range_check_says_which_range_arrived():
    check_unit_range(torch.tensor([0.0, 1.0]), "real")
    with pytest.raises(ValueError, match=r"real must be in \[0, 1\], but has values in \[-1, 1\]"):
        check_unit_range(torch.tensor([-1.0, 1.0]), "real")
    with pytest.raises(ValueError, match="fake must be in"):
        check_unit_range(torch.tensor([0.5, float("nan")]), "fake")
