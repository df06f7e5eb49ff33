"""L1 and squared error: regions, levels, batches, precision."""

import itertools

import pytest
import torch
from torch import Tensor

from perceptual_mae.images import mask_image, pyramid
from perceptual_mae.losses.pixel import l1, mse


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_mask(images: int, patches: int, hidden: int, seed: int = 0) -> Tensor:
    noise = rand(images, patches, seed=seed)
    return noise.argsort(dim=1).argsort(dim=1) < hidden


@pytest.mark.parametrize("region", ["all", "masked"])
def test_a_constant_error_costs_itself_whatever_the_ratio_and_the_channels(region):
    for hidden, channels, levels in itertools.product([1, 5, 12, 16], [1, 3, 5], [1, 3, 4]):
        real = pyramid(rand(2, channels, 16, 16), levels)
        fake = tuple(level + 0.25 for level in real)
        mask = random_mask(2, 16, hidden)
        for low_levels, factor in ((0.0, 1.0), (0.1, 1 + 0.1 * (levels - 1))):
            options = {"region": region, "low_levels": low_levels}
            case = f"{hidden} hidden, {channels} channels, {levels} levels, {low_levels}"
            assert l1(fake, real, mask, (4, 4), **options).item() == pytest.approx(0.25 * factor, rel=1e-5), case
            assert mse(fake, real, mask, (4, 4), **options).item() == pytest.approx(0.0625 * factor, rel=1e-5), case


def test_the_whole_image_is_the_plain_mean_of_each_level():
    fake, real = pyramid(rand(3, 3, 16, 16), 3), pyramid(rand(3, 3, 16, 16, seed=1), 3)
    errors = [(f - r).abs().mean().item() for f, r in zip(fake, real, strict=True)]
    loss = l1(fake, real, random_mask(3, 16, 12), (4, 4), low_levels=0.3)
    assert loss.item() == pytest.approx(errors[0] + 0.3 * (errors[1] + errors[2]), rel=1e-5)


def test_the_masked_region_counts_hidden_pixels_only_and_small_levels_by_their_share():
    fake, real = pyramid(rand(2, 3, 32, 32), 4), pyramid(rand(2, 3, 32, 32, seed=1), 4)  # 32, 16, 8, 4
    mask = random_mask(2, 64, 48)  # a grid of 8 x 8
    hidden = mask.view(2, 1, 8, 8)
    expected = 0.0
    for level, (f, r) in enumerate(zip(fake, real, strict=True)):
        side = 32 >> level
        share = hidden.double()
        if side >= 8:
            share = share.repeat_interleave(side // 8, 2).repeat_interleave(side // 8, 3)
        else:
            share = share.view(2, 1, 4, 2, 4, 2).mean(dim=(3, 5))
        error = ((f - r).double().square() * share).sum() / (share.sum() * 3)
        expected += error.item() * (1.0 if level == 0 else 0.1)
    assert mse(fake, real, mask, (8, 8)).item() == pytest.approx(expected, rel=1e-5)


def test_pixels_outside_the_masked_region_have_no_gradient():
    fake = rand(2, 3, 16, 16).requires_grad_()
    mask = random_mask(2, 16, 6)
    mse((fake,), (rand(2, 3, 16, 16, seed=1),), mask, (4, 4)).backward()
    assert torch.equal((fake.grad != 0).any(dim=1, keepdim=True).float(), mask_image(mask, (4, 4), (16, 16)))


@pytest.mark.parametrize("loss", [l1, mse])
@pytest.mark.parametrize("region", ["all", "masked"])
@pytest.mark.parametrize("images", [1, 2, 3, 5])
def test_a_batch_costs_the_mean_of_its_images(loss, region, images):
    fake, real = pyramid(rand(images, 3, 16, 16), 2), pyramid(rand(images, 3, 16, 16, seed=1), 2)
    mask = torch.stack([random_mask(1, 16, 3 + i, seed=i)[0] for i in range(images)])  # unequal on purpose
    whole = loss(fake, real, mask, (4, 4), region=region)
    singles = [
        loss(
            tuple(f[i : i + 1] for f in fake), tuple(r[i : i + 1] for r in real), mask[i : i + 1], (4, 4), region=region
        )
        for i in range(images)
    ]
    assert whole.item() == pytest.approx(torch.stack(singles).mean().item(), rel=1e-5)


def test_an_image_with_nothing_hidden_adds_nothing_and_no_nan():
    mask = torch.tensor([[False] * 4, [True] * 4])
    fake = torch.full((2, 3, 8, 8), 0.5, requires_grad=True)
    loss = mse((fake,), (torch.zeros(2, 3, 8, 8),), mask, (2, 2))
    loss.backward()
    assert loss.item() == pytest.approx(0.125)
    assert fake.grad.isfinite().all()


@pytest.mark.parametrize("loss", [l1, mse])
@pytest.mark.parametrize("region", ["all", "masked"])
def test_the_gradient_is_the_derivative(loss, region):
    fake, real = rand(2, 2, 8, 8, dtype=torch.float64), rand(2, 2, 8, 8, seed=1, dtype=torch.float64)
    mask = random_mask(2, 16, 10)

    def of(image: Tensor) -> Tensor:
        return loss(pyramid(image, 3), pyramid(real, 3), mask, (4, 4), region=region)

    assert of(fake).dtype == torch.float64
    assert torch.autograd.gradcheck(of, fake.requires_grad_())


@pytest.mark.parametrize("loss", [l1, mse])
def test_identical_images_cost_nothing_and_keep_a_finite_gradient(loss):
    fake = rand(2, 3, 8, 8).requires_grad_()
    value = loss((fake,), (fake.detach(),), random_mask(2, 16, 8), (4, 4))
    value.backward()
    assert value.item() == 0
    assert fake.grad.isfinite().all()


@pytest.mark.parametrize("loss", [l1, mse])
def test_half_precision_images_are_compared_in_float32(loss):
    fake, real = rand(2, 3, 16, 16).bfloat16(), rand(2, 3, 16, 16, seed=1).bfloat16()
    mask = random_mask(2, 16, 12)
    expected = loss((fake.float(),), (real.float(),), mask, (4, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss((fake,), (real,), mask, (4, 4))
    assert value.dtype == torch.float32
    assert value.item() == expected.item()


def test_mismatched_pyramids_and_bad_options_are_refused():
    images, mask = rand(2, 3, 8, 8), random_mask(2, 16, 8)
    with pytest.raises(ValueError, match="do not match"):
        l1((images,), pyramid(images, 2), mask, (4, 4))
    with pytest.raises(ValueError, match="do not match"):
        l1((images,), (images[:1],), mask, (4, 4))  # would broadcast
    with pytest.raises(ValueError, match="choose from"):
        l1((images,), (images,), mask, (4, 4), region="hidden")
    with pytest.raises(ValueError, match="low_levels"):
        l1((images,), (images,), mask, (4, 4), low_levels=-1)
