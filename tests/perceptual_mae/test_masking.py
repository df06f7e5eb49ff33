"""Masks hide exactly what they should, evenly, and as their generators say."""

import pytest
import torch
from torch import Tensor

from perceptual_mae.config.from_signature import first_parameter
from perceptual_mae.masking import (
    MASKINGS,
    attention,
    block,
    draw_masks,
    grid,
    num_hidden,
    random,
    visible_patches,
)
from perceptual_mae.seeding import stream

PLANTED = torch.tensor([0.02, 0.3, 0.01, 0.1, 0.05, 0.2, 0.04, 0.28])


@pytest.mark.parametrize(
    ("num_patches", "ratio", "visible"),
    [(196, 0.75, 49), (36, 0.75, 9), (64, 0.75, 16), (256, 0.75, 64), (100, 0.9, 10), (10, 0.7, 3), (7, 0.0, 7)],
)
def test_mask_hides_exactly_the_requested_ratio(num_patches, ratio, visible):
    assert num_patches - num_hidden(num_patches, ratio) == visible


@pytest.mark.parametrize(
    ("num_patches", "ratio", "visible"), [(49, 0.75, 12), (36, 0.6, 14), (10, 0.25, 7), (15, 0.75, 3)]
)
def test_a_number_of_visible_patches_that_is_not_whole_is_rounded_down(num_patches, ratio, visible):
    """As MAE does: 12.25, 14.4, 7.5 and 3.75 patches."""
    assert num_patches - num_hidden(num_patches, ratio) == visible


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 75])
def test_ratio_outside_the_unit_interval_is_refused(ratio):
    with pytest.raises(ValueError, match=r"outside \[0, 1\)"):
        num_hidden(64, ratio)


def attention_for(kind, num_images, num_patches):
    """The encoder's attention (B, L), for the maskings that need it."""
    shares = torch.rand(8, num_patches, generator=torch.Generator().manual_seed(0))[:num_images]
    return shares if first_parameter(MASKINGS[kind]) == "attention" else None


@pytest.mark.parametrize("kind", MASKINGS)
@pytest.mark.parametrize("grid", [(8, 8), (6, 4), (1, 5)])
def test_every_masking_hides_the_given_number_in_every_sample(kind, grid):
    num_patches = grid[0] * grid[1]
    hidden = num_hidden(num_patches, 0.75)
    draws = [stream("mask", 0, index) for index in range(5)]
    masks = draw_masks(MASKINGS[kind], grid, hidden, draws, attention_for(kind, 5, num_patches))
    assert masks.shape == (5, grid[0] * grid[1])
    assert masks.dtype == torch.bool
    assert masks.sum(dim=1).tolist() == [hidden] * 5


@pytest.mark.parametrize("kind", MASKINGS)
def test_a_sample_keeps_its_mask_whatever_batch_it_is_drawn_in(kind):
    shares = attention_for(kind, 6, 64)
    alone = draw_masks(MASKINGS[kind], (8, 8), 48, [stream("mask", 7, 3)], None if shares is None else shares[3:4])
    together = draw_masks(MASKINGS[kind], (8, 8), 48, [stream("mask", 7, index) for index in range(6)], shares)
    assert torch.equal(together[3], alone[0])
    assert len(together.unique(dim=0)) > 1


def test_random_masking_hides_every_patch_equally_often():
    generator = torch.Generator().manual_seed(0)
    frequency = torch.stack([random((4, 4), 12, generator) for _ in range(4000)]).float().mean(dim=0)
    sigma = (0.75 * 0.25 / 4000) ** 0.5
    assert (frequency - 0.75).abs().max() < 4 * sigma


def drawn(mask, columns):
    return ["".join("#" if hidden else "." for hidden in row) for row in mask.view(-1, columns).tolist()]


def test_grid_masking_at_three_quarters_shows_one_patch_of_each_two_by_two():
    starts = set()
    for seed in range(20):
        mask = grid((8, 8), 48, torch.Generator().manual_seed(seed)).view(8, 8)
        visible = (~mask).nonzero()
        assert len(((visible - visible[0]) % 2).unique(dim=0)) == 1
        starts.add(tuple((visible[0] % 2).tolist()))
    assert len(starts) == 4


def test_grid_masking_at_a_half_is_a_chessboard():
    mask = grid((4, 6), 12, torch.Generator().manual_seed(0))
    assert drawn(mask, 6) in ([".#.#.#", "#.#.#."] * 2, ["#.#.#.", ".#.#.#"] * 2)


@pytest.mark.parametrize("shape", [(8, 8), (7, 7), (4, 6), (1, 5), (14, 14)])
def test_grid_and_block_masks_hide_any_number(shape):
    for hidden in range(shape[0] * shape[1]):
        for kind in (grid, block):
            assert kind(shape, hidden, torch.Generator().manual_seed(hidden)).sum() == hidden


def test_pictures_of_grid_and_block_masks():
    """A lattice that loses patches evenly as the ratio goes from 3/4 to 9/10; rectangles, the last cut off."""
    assert drawn(grid((4, 6), 18, torch.Generator().manual_seed(0)), 6) == ["#.#.#.", "######"] * 2
    sparse = drawn(grid((8, 8), 58, torch.Generator().manual_seed(0)), 8)
    assert sparse == ["#.###.##", "########", "#######.", "########", "#.###.##", "########", "###.####", "########"]
    blocks = drawn(block((8, 8), 40, torch.Generator().manual_seed(0)), 8)
    assert blocks == ["######..", "######..", "########", "..######", "#...####", "....###.", "###.....", "###....."]


def test_block_masks_hide_neighbours_together():
    """Borders between hidden and visible patches: far fewer than among patches drawn one by one."""

    def borders(kind):
        masks = [kind((14, 14), 98, torch.Generator().manual_seed(seed)).view(14, 14) for seed in range(50)]
        return sum(int((mask[1:] ^ mask[:-1]).sum() + (mask[:, 1:] ^ mask[:, :-1]).sum()) for mask in masks) / 50

    assert borders(block) < 0.4 * borders(random)


def test_one_block_of_a_size_is_a_rectangle():
    hidden = block((8, 8), 9, torch.Generator().manual_seed(1), smallest=9, narrowest=1.0).view(8, 8).nonzero()
    assert (hidden - hidden[0]).tolist() == [[row, column] for row in range(3) for column in range(3)]


@pytest.mark.parametrize("options", [{"smallest": 0}, {"narrowest": 0.0}, {"narrowest": 1.5}])
def test_impossible_blocks_are_refused(options):
    with pytest.raises(ValueError, match="block needs"):
        block((8, 8), 6, torch.Generator(), **options)


def test_a_masking_that_miscounts_is_refused():
    with pytest.raises(ValueError, match="exactly 3 hidden"):
        draw_masks(lambda grid, num_hidden, generator: torch.arange(4) < 2, (2, 2), 3, [torch.Generator()])


def test_visible_patches_are_listed_in_ascending_order():
    mask = torch.tensor([[True, False, True, False], [False, False, True, True]])
    assert visible_patches(mask).tolist() == [[1, 3], [0, 1]]
    assert visible_patches(torch.ones(2, 4, dtype=torch.bool)).shape == (2, 0)


def test_masks_of_unequal_counts_are_refused():
    with pytest.raises(ValueError, match="same number of hidden patches, got 1 to 2"):
        visible_patches(torch.tensor([[True, False, True], [False, False, True]]))


def test_a_ratio_that_leaves_nothing_visible_is_refused_with_the_largest_that_does() -> None:
    with pytest.raises(ValueError, match=r"leaves none of 16 patches visible; use at most 0\.9375"):
        num_hidden(16, 0.99)
    assert num_hidden(16, 0.9375) == 15


def hide(num_hidden: int, seed: int = 0, shares: Tensor = PLANTED, **options: object) -> list[int]:
    mask = attention(shares, (2, 4), num_hidden, torch.Generator().manual_seed(seed), **options)
    return mask.nonzero().flatten().tolist()


def test_attention_masking_at_temperature_0_hides_the_patches_with_most_attention_or_with_least() -> None:
    assert hide(3, temperature=0.0) == [1, 5, 7]
    assert hide(3, temperature=0.0, hide="unattended") == [0, 2, 6]
    assert hide(3, temperature=0.0, seed=1) == hide(3, temperature=0.0, seed=2)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 100.0])
def test_any_number_is_hidden_exactly_even_where_attention_is_zero_or_equal(temperature: float) -> None:
    for shares in (PLANTED, torch.zeros(8), torch.ones(8), PLANTED * (PLANTED > 0.1)):
        for which in ("attended", "unattended"):
            numbers = [len(hide(number, shares=shares, temperature=temperature, hide=which)) for number in range(9)]
            assert numbers == list(range(9))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("which", ["attended", "unattended"])
def test_the_first_draw_goes_as_share_to_the_power_of_one_over_temperature(which: str, temperature: float) -> None:
    draws, generator = 2000, torch.Generator().manual_seed(0)
    options = {"hide": which, "temperature": temperature}
    drawn = torch.stack([attention(PLANTED, (2, 4), 1, generator, **options) for _ in range(draws)]).float().mean(0)
    probability = PLANTED.double() ** ((1 if which == "attended" else -1) / temperature)
    probability /= probability.sum()
    sigma = (probability * (1 - probability) / draws).sqrt()
    assert ((drawn - probability).abs() < 4 * sigma + 1e-9).all()


def test_several_draws_are_without_replacement() -> None:
    """Of two hidden among three with probabilitys p, the pair (0, 1) has p0 p1 / (1 - p0) + p1 p0 / (1 - p1)."""
    p, generator = torch.tensor([0.5, 0.3, 0.2]), torch.Generator().manual_seed(0)
    masks = torch.stack([attention(p, (1, 3), 2, generator) for _ in range(2000)])
    share = (masks[:, 0] & masks[:, 1]).float().mean()
    expected = 0.5 * 0.3 / 0.5 + 0.3 * 0.5 / 0.7
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 2000) ** 0.5
