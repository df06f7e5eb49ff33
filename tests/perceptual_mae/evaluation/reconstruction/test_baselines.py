"""The fillings that learn nothing, on hand-made images."""

import pytest
import torch

from perceptual_mae.evaluation.reconstruction import baselines
from perceptual_mae.images import mask_image, unpatchify

GRID = (4, 4)


def half_mask(count: int) -> torch.Tensor:
    mask = torch.zeros(16, dtype=torch.bool)
    mask[8:] = True
    return mask.expand(count, 16)


@pytest.mark.parametrize("fill", baselines.BASELINES.values(), ids=list(baselines.BASELINES))
def test_a_filling_keeps_the_visible_pixels_and_never_sees_the_hidden_ones(fill) -> None:
    real, mask = torch.rand(2, 3, 32, 32), half_mask(2)
    hidden = mask_image(mask, GRID, (32, 32)).bool().expand_as(real)
    filled = fill(real, mask, 8)
    assert torch.equal(filled[~hidden], real[~hidden])
    changed = torch.where(hidden, torch.rand_like(real), real)
    assert torch.equal(fill(changed, mask, 8), filled)


def test_mean_color_is_the_mean_of_the_visible_pixels() -> None:
    real = torch.zeros(1, 3, 32, 32)
    real[:, 0, :16] = 0.25
    real[:, 1, :8] = 1.0
    filled = baselines.mean_color(real, half_mask(1), 8)
    assert filled[0, :, 31, 31].tolist() == pytest.approx([0.25, 0.5, 0.0])


def test_nearest_patch_copies_the_closest_visible_patch() -> None:
    real = unpatchify((torch.arange(16.0) / 16).view(1, 16, 1).expand(1, 16, 64), 8, GRID)
    filled = baselines.nearest_patch(real, half_mask(1), 8)
    for column in range(4):
        below, above = filled[0, 0, 24, 8 * column], real[0, 0, 8, 8 * column]
        assert float(below) == float(above)


def test_inverse_distance_weighs_by_the_square_of_the_distance() -> None:
    real = torch.zeros(1, 1, 8, 24)
    real[..., :8] = 1.0  # patches: 1, hidden, 0 -> equal distances
    mask = torch.tensor([[False, True, False]])
    assert float(baselines.inverse_distance(real, mask, 8)[0, 0, 0, 12]) == pytest.approx(0.5)
    mask = torch.tensor([[False, False, True]])
    assert float(baselines.inverse_distance(real, mask, 8)[0, 0, 0, 20]) == pytest.approx((1 / 4) / (1 / 4 + 1))
