"""Which patches are kept, and what the pictures of attention show."""

import pytest
import torch
from matplotlib import colormaps

from perceptual_mae.visualization.attention import attention_columns, kept_patches, patch_maps

MASS = torch.tensor([[0.1, 0.4, 0.2, 0.3], [4.0, 0.0, 4.0, 2.0]])  # the second sums to 10


@pytest.mark.parametrize(
    ("keep", "first", "second"),
    [
        (0.4, [1], [0]),
        (0.41, [1, 3], [0, 2]),
        (0.7, [1, 3], [0, 2]),
        (0.8, [1, 2, 3], [0, 2]),
        (0.95, [0, 1, 2, 3], [0, 2, 3]),
        (1.0, [0, 1, 2, 3], [0, 2, 3]),  # a patch nobody looks at is never kept
    ],
)
def test_the_fewest_patches_that_hold_the_share_are_kept(keep, first, second):
    kept = kept_patches(MASS, keep)
    assert [row.nonzero().flatten().tolist() for row in kept] == [first, second]


def test_kept_patches_are_those_of_dinos_ascending_sum():
    attention = torch.rand(5, 49, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values, order = attention.sort(dim=-1)
    above = (values / values.sum(-1, keepdim=True)).cumsum(-1) > 1 - 0.6
    assert torch.equal(kept_patches(attention, 0.6), above.gather(-1, order.argsort(-1)))


def test_columns_are_the_original_the_mean_each_head_and_the_kept_patches():
    images = torch.rand(1, 3, 4, 4)
    # Two heads over 2x2 patches, the class token's own share first.
    attention = torch.tensor([[[0.5, 0.5, 0.0, 0.0, 0.0], [0.2, 0.1, 0.1, 0.2, 0.4]]])
    columns = attention_columns(images, attention, (2, 2), keep=0.5)
    assert list(columns) == ["original", "mean", "head 1", "head 2", "kept"]
    darkest, brightest = (torch.tensor(colormaps["inferno"](end)[:3]).float() for end in (0, 255))
    head = columns["head 1"][0]
    torch.testing.assert_close(head[:, 0, 0], brightest)
    torch.testing.assert_close(head[:, 1, 1], brightest)
    torch.testing.assert_close(head[:, 0, 2], darkest)
    torch.testing.assert_close(columns["mean"][0, :, 0, 0], brightest)  # 0.3 of 0.3, 0.05, 0.1, 0.2
    assert torch.equal(columns["kept"][0, :, :2, :2], images[0, :, :2, :2])  # of a mass of 0.65, 0.3 is too little
    assert torch.equal(columns["kept"][0, :, 2:, 2:], images[0, :, 2:, 2:])
    torch.testing.assert_close(columns["kept"][0, :, :2, 2:], 0.2 * images[0, :, :2, 2:])


def test_maps_of_patches_are_the_mean_of_heads_without_the_class_token_each_row_up_to_its_largest():
    attention = torch.tensor(
        [[[[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.2, 0.0, 0.8]], [[1.0, 0, 0], [0.1, 0.1, 0.8], [1.0, 0, 0]]]]
    )
    maps = patch_maps(attention)  # means of rows: .2, .45 and 0, .4
    assert maps.dtype == torch.uint8
    assert maps.tolist() == [[[113, 255], [0, 255]]]


def test_maps_of_patches_that_attend_to_the_class_token_alone_are_dark():
    attention = torch.zeros(1, 2, 3, 3)
    attention[..., 0] = 1
    assert patch_maps(attention).tolist() == [[[0, 0], [0, 0]]]
