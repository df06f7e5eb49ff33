"""What the discriminator is shown of reconstructions, and what gradient returns from it."""

import pytest
import torch

from perceptual_mae.images import pyramid
from perceptual_mae.objective.discriminator_input import DiscriminatorInput, round_to_bytes, scale_gradient

GRID = (2, 2)
HEADS = [torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(side)) for side in (8, 4, 2)]
ORIGINAL = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[True, False, False, True], [True, True, True, False]])


def shown(images: list[torch.Tensor], levels: int = 3, **options: object) -> tuple[torch.Tensor, ...]:
    return DiscriminatorInput(levels, **options)(tuple(images), ORIGINAL, MASK, GRID)


def test_by_default_it_is_shown_what_the_heads_write() -> None:
    assert all(a is b for a, b in zip(shown(HEADS), HEADS, strict=True))
    assert len(shown(HEADS, levels=1)) == 1


def test_one_image_is_pooled_to_as_many_levels_as_are_read() -> None:
    assert all(map(torch.equal, shown(HEADS[:1]), pyramid(HEADS[0], 3)))


def test_pooled_levels_are_averages_of_the_full_size_whatever_the_heads_write() -> None:
    assert all(map(torch.equal, shown(HEADS, pooled=True), pyramid(HEADS[0], 3)))


@pytest.mark.parametrize("pooled", [False, True])
def test_a_composite_has_the_originals_visible_pixels_and_the_reconstructions_hidden_ones(pooled: bool) -> None:
    full, half, quarter = shown(HEADS, composite=True, pooled=pooled)
    assert torch.equal(full[0, :, :4, :4], HEADS[0][0, :, :4, :4])  # patch 0 of image 0 is hidden
    assert torch.equal(full[0, :, :4, 4:], ORIGINAL[0, :, :4, 4:])
    assert torch.equal(half[1, :, 2:, 2:], pyramid(ORIGINAL, 2)[1][1, :, 2:, 2:])
    if pooled:
        assert all(map(torch.equal, (full, half, quarter), pyramid(full, 3)))
    else:
        assert torch.equal(half[1, :, :2, :2], HEADS[1][1, :, :2, :2])


def test_a_pixel_of_several_patches_takes_their_hidden_share_of_the_reconstruction() -> None:
    heads = [torch.ones(2, 3, side, side) for side in (8, 4, 2, 1)]
    black = torch.zeros(2, 3, 8, 8)
    *_, smallest = DiscriminatorInput(4, composite=True)(tuple(heads), black, MASK, GRID)
    assert smallest[:, 0, 0, 0].tolist() == [0.5, 0.75]


def test_originals_come_out_as_they_are() -> None:
    real = pyramid((ORIGINAL * 255).round() / 255, 3)
    for options in ({"pooled": True}, {"discretise": True}, {"low_levels": 0.1}):
        assert all(map(torch.equal, DiscriminatorInput(3, **options)(real, real[0], MASK, GRID), real))
    through = DiscriminatorInput(3, composite=True)(real, real[0], MASK, GRID)
    assert all(map(torch.equal, through, real))


def test_the_discretised_image_has_bytes_for_values_and_the_gradient_of_the_identity() -> None:
    images = torch.tensor([[[[-0.2, 0.5, 1.3, 0.1234]]]], requires_grad=True)
    rounded = round_to_bytes(images)
    assert (rounded * 255).flatten().tolist() == pytest.approx([0, 128, 255, 31])
    rounded.sum().backward()
    assert images.grad.flatten().tolist() == [1.0] * 4
    full, half, _ = shown([3 * HEADS[0] - 1], discretise=True)
    assert torch.equal(half, pyramid(full, 2)[1])


@pytest.mark.parametrize(
    ("low_levels", "factors"), [(1.0, [1, 1, 1]), (0.1, [1, 0.1, 0.1]), ("k^-2", [1, 1 / 4, 1 / 16]), (0.0, [1, 0, 0])]
)
def test_the_gradient_through_each_lower_level_is_discounted_and_no_value_changes(
    low_levels: object, factors: list[float]
) -> None:
    heads = [level.clone().requires_grad_() for level in HEADS]
    levels = shown(heads, low_levels=low_levels)
    assert all(map(torch.equal, levels, HEADS))
    sum(level.sum() for level in levels).backward()
    for level, factor in zip(heads, factors, strict=True):
        assert level.grad.flatten().tolist() == pytest.approx([factor] * level.numel())


def test_pooled_levels_return_the_gradient_of_an_average_each_at_its_discount() -> None:
    image = HEADS[0].clone().requires_grad_()
    sum(level.sum() for level in shown([image], pooled=True, low_levels="k^-2")).backward()
    # A pixel is 1/4 of one of the next level and 1/16 of one of the last: 1 + 1/4 * 1/4 + 1/16 * 1/16.
    assert image.grad.flatten().tolist() == pytest.approx([1 + 1 / 16 + 1 / 256] * image.numel())


def test_scaled_gradients_can_be_differentiated_again() -> None:
    tensor = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: (scale_gradient(x, 1.0) ** 3).sum(), tensor)
    (first,) = torch.autograd.grad((scale_gradient(tensor, 0.5) ** 3).sum(), tensor, create_graph=True)
    assert first.tolist() == pytest.approx([0.5 * 3 * 4, 0.5 * 3 * 9])
