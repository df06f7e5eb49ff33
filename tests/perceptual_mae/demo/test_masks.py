"""Masks that are drawn, read, and carried to another grid."""

from itertools import product

import pytest
import torch

from perceptual_mae.demo.masks import KINDS, draw, nearest_mask, overlap, read_mask, to_text


@pytest.mark.parametrize("kind", KINDS)
def test_a_drawn_mask_hides_its_share_and_is_the_same_for_the_same_seed(kind: str) -> None:
    mask = draw(kind, (8, 8), 0.75, seed=3)
    assert int(mask.sum()) == 48
    assert torch.equal(mask, draw(kind, (8, 8), 0.75, seed=3))
    assert len({to_text(draw(kind, (8, 8), 0.75, seed)) for seed in range(8)}) > 1


def test_a_ratio_that_leaves_nothing_visible_is_refused_with_the_largest_one() -> None:
    with pytest.raises(ValueError, match=r"use at most 0\.9375"):
        draw("random", (4, 4), 0.99, seed=0)


@pytest.mark.parametrize("text", ["", "0" * 15, "0" * 17, "0" * 15 + "2", "0" * 15 + "\u0661"])
def test_a_text_that_is_no_mask_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a mask is 16 characters"):
        read_mask(text, (4, 4))


def test_a_mask_is_read_as_it_was_written() -> None:
    mask = draw("block", (3, 5), 0.4, seed=1)
    assert torch.equal(read_mask(to_text(mask), (3, 5)), mask)


def test_a_finer_grid_gets_the_same_area_and_hands_the_same_mask_back() -> None:
    mask = draw("random", (4, 4), 0.5, seed=0)
    fine = nearest_mask(mask, (4, 4), (8, 8))
    assert torch.equal(fine.view(8, 8), mask.view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert torch.equal(nearest_mask(fine, (8, 8), (4, 4)), mask)


def test_of_two_patches_and_three_the_middle_one_follows_the_half() -> None:
    assert overlap(2, 3).tolist() == [pytest.approx(row) for row in ([1, 0], [0.5, 0.5], [0, 1])]
    assert to_text(nearest_mask(read_mask("10", (1, 2)), (1, 2), (1, 3))) == "110"
    assert to_text(nearest_mask(read_mask("011", (1, 3)), (1, 3), (1, 2))) == "01"


def test_no_mask_of_the_other_grid_differs_in_a_smaller_area() -> None:
    mask = read_mask("100110010", (3, 3))  # both grids divide 6 x 6 pixels
    pixels = mask.view(3, 3).repeat_interleave(2, 0).repeat_interleave(2, 1)

    def difference(own: torch.Tensor) -> int:
        return int((own.view(2, 2).repeat_interleave(3, 0).repeat_interleave(3, 1) != pixels).sum())

    every = [torch.tensor(marks) for marks in product((False, True), repeat=4)]
    best = min(difference(own) for own in every if not own.all() and own.any())
    assert difference(nearest_mask(mask, (3, 3), (2, 2))) == best


@pytest.mark.parametrize("own", [(2, 2), (1, 3), (5, 7)])
def test_something_stays_hidden_and_something_visible(own: tuple[int, int]) -> None:
    one = read_mask("1" + 63 * "0", (8, 8))
    for mask in (one, ~one):
        carried = nearest_mask(mask, (8, 8), own)
        assert carried.any()
        assert not carried.all()
    assert not nearest_mask(torch.zeros(64, dtype=torch.bool), (8, 8), own).any()
    assert nearest_mask(torch.ones(64, dtype=torch.bool), (8, 8), own).all()
