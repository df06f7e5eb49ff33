"""What every discriminator of the table promises, at several image sizes."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discriminators import DISCRIMINATORS, Discriminator, DiscriminatorOutput
from frozen_stand_in import make_discriminator
from perceptual_mae.config.layers import list_recipes
from perceptual_mae.config.parsing import load_config

RECIPES = [(32, 32), (96, 96), (224, 224)]
"""The image sizes of the shipped recipes."""

SIZES = [*RECIPES, (64, 64), (96, 64)]
SMALL = {"msg_gan": {"base_channels": 16}, "stylegan2": {"channel_base": 1024}}
"""Widths that keep these tests short, for kinds whose default is made for large images."""

STEMS = ["ls_gan+space_to_depth", "stylegan2+space_to_depth"]
every_discriminator = pytest.mark.parametrize("kind", [*sorted(DISCRIMINATORS), *STEMS])
every_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


def resolutions(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Halve a size until its shorter side is below 8 pixels."""
    sizes = [size]
    while min(sizes[-1]) >= 8:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes


def build(kind: str, size: tuple[int, int], channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    kind, _, stem = kind.partition("+")
    options = {"stem": stem} if stem else {}
    return make_discriminator(kind, resolutions(size), channels, **SMALL.get(kind, {}), **options)


def pyramid(images: int, size: tuple[int, int], channels: int = 3, seed: int = 0) -> tuple[Tensor, ...]:
    image = torch.rand(images, channels, *size, generator=torch.Generator().manual_seed(seed))
    levels = [image]
    for _ in resolutions(size)[1:]:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return tuple(levels)


def test_the_sizes_of_the_recipes_are_all_tested():
    assert {load_config([recipe.name]).data.size for recipe in list_recipes()} == set(RECIPES)


@every_discriminator
@every_size
def test_logits_and_features_have_the_promised_shapes(kind, size):
    discriminator = build(kind, size)
    assert isinstance(discriminator, Discriminator)
    assert 1 <= discriminator.levels <= len(resolutions(size))
    with torch.no_grad():
        output = discriminator(pyramid(2, size))
    assert isinstance(output, DiscriminatorOutput)
    assert output.logits.shape[0] == 2
    assert output.features
    assert all(layer.ndim == 4 and len(layer) == 2 for layer in output.features)
    areas = [layer.shape[2] * layer.shape[3] for layer in output.features]
    assert areas == sorted(areas, reverse=True)  # shallow to deep
    assert all(not isinstance(module, nn.modules.batchnorm._BatchNorm) for module in discriminator.modules())


@every_discriminator
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_batch_size_and_channel_count_works(kind, channels):
    discriminator = build(kind, (32, 32), channels)
    for images in (1, 2, 3, 5):
        output = discriminator(pyramid(images, (32, 32), channels))
        assert len(output.logits) == images
        assert output.logits.isfinite().all()


@every_discriminator
@every_size
def test_a_finite_gradient_reaches_every_level_it_reads_and_every_parameter(kind, size):
    discriminator = build(kind, size)
    levels = tuple(level.requires_grad_() for level in pyramid(1, size))
    discriminator(levels).logits.square().mean().backward()
    for level in levels[: discriminator.levels]:
        assert level.grad.isfinite().all()
        assert level.grad.abs().max() > 0
    assert all(level.grad is None for level in levels[discriminator.levels :])
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@every_discriminator
def test_each_layer_of_features_has_a_gradient_to_the_image(kind):
    discriminator = build(kind, (32, 32))
    levels = tuple(level.requires_grad_() for level in pyramid(1, (32, 32)))
    for layer in discriminator(levels).features:
        gradients = torch.autograd.grad(layer.square().mean(), levels, retain_graph=True, allow_unused=True)
        assert max(gradient.abs().max() for gradient in gradients if gradient is not None) > 0


@every_discriminator
def test_features_and_their_gradients_can_be_differentiated_again(kind):
    discriminator = build(kind, (32, 32)).double()
    levels = tuple(level.double().requires_grad_() for level in pyramid(4, (32, 32)))
    read = levels[: discriminator.levels]
    output = discriminator(levels)
    projection = sum((layer * torch.linspace(-1, 1, layer.numel()).view_as(layer)).sum() for layer in output.features)
    gradients = torch.autograd.grad(projection, read, create_graph=True, allow_unused=True)
    lengths = sum(gradient.square().sum() for gradient in gradients if gradient is not None)
    moved = torch.autograd.grad(lengths, list(discriminator.parameters()), allow_unused=True)
    assert all(gradient.isfinite().all() for gradient in moved if gradient is not None)
    assert max(gradient.abs().max() for gradient in moved if gradient is not None) > 0


@pytest.mark.slow
@every_discriminator
def test_logits_can_be_trained_below_0_and_above_1(kind):
    discriminator = build(kind, (32, 32))
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=3e-3)
    low, high = pyramid(2, (32, 32)), pyramid(2, (32, 32), seed=1)
    for _ in range(40):
        optimizer.zero_grad()
        loss = (discriminator(low).logits + 3).square().mean() + (discriminator(high).logits - 4).square().mean()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert discriminator(low).logits.mean() < -1
        assert discriminator(high).logits.mean() > 2


@every_discriminator
def test_the_last_layer_is_linear_and_nothing_squashes_what_it_says(kind):
    discriminator, levels = build(kind, (32, 32)), pyramid(2, (32, 32))
    with torch.no_grad():
        before = discriminator(levels).logits
        for parameter in list(discriminator.parameters())[-2:]:  # weight and bias
            parameter.mul_(1000)
        after = discriminator(levels).logits
    torch.testing.assert_close(after, 1000 * before, rtol=1e-4, atol=1e-3)
    assert after.abs().max() > 10


@every_discriminator
def test_r1_can_be_taken_because_the_gradient_has_a_gradient(kind):
    discriminator = build(kind, (32, 32))
    levels = tuple(level.requires_grad_() for level in pyramid(2, (32, 32)))
    read = levels[: discriminator.levels]
    gradients = torch.autograd.grad(discriminator(levels).logits.sum(), read, create_graph=True)
    torch.stack([gradient.square().sum() for gradient in gradients]).sum().backward()
    assert any(
        parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in discriminator.parameters()
    )


@every_discriminator
def test_a_saved_state_gives_the_same_answer(kind):
    discriminator, other = build(kind, (32, 32)), build(kind, (32, 32))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    levels = pyramid(2, (32, 32))
    assert not torch.equal(discriminator(levels).logits, other(levels).logits)
    other.load_state_dict(discriminator.state_dict())
    assert torch.equal(discriminator(levels).logits, other(levels).logits)


@every_discriminator
def test_the_same_seed_builds_the_same_discriminator(kind):
    first, second = build(kind, (32, 32)), build(kind, (32, 32))
    pairs = itertools.zip_longest(first.state_dict().values(), second.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)


@every_discriminator
@pytest.mark.parametrize("size", RECIPES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("channels_last", [pytest.param(False, marks=pytest.mark.slow), True])
def test_bfloat16_autocast_and_channels_last_stay_near_float32(kind, channels_last, size):
    discriminator, levels = build(kind, size), pyramid(2, size)
    with torch.no_grad():
        full = discriminator(levels)
        if channels_last:
            discriminator = discriminator.to(memory_format=torch.channels_last)
            levels = tuple(level.contiguous(memory_format=torch.channels_last) for level in levels)
            torch.testing.assert_close(discriminator(levels).logits, full.logits)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = discriminator(levels)
    torch.testing.assert_close(cast.logits.float(), full.logits, atol=0.05, rtol=0.05)
    for layer, full_layer in zip(cast.features, full.features, strict=True):
        assert (layer.float() - full_layer).abs().mean() < 0.02 * full_layer.abs().mean()


@every_discriminator
def test_images_of_another_size_are_refused(kind):
    discriminator = build(kind, (32, 32))
    for levels in (pyramid(1, (64, 64)), pyramid(1, (32, 32), channels=1)):
        with pytest.raises(ValueError, match="built for"):
            discriminator(levels)


@every_discriminator
def test_the_wrong_number_or_order_of_levels_is_refused(kind):
    """One that reads the first level alone lets others be, as far as they are a pyramid's; it refuses none at all."""
    discriminator, levels = build(kind, (32, 32)), pyramid(1, (32, 32))
    wrong = [(), levels[::-1]]
    if discriminator.levels > 1:
        wrong += [levels[:1], levels[: discriminator.levels - 1], (*levels, levels[-1])]
    for refused in wrong:
        with pytest.raises(ValueError, match="built for"):
            discriminator(refused)
    whole, read = discriminator(levels), discriminator(levels[: discriminator.levels])
    assert torch.equal(whole.logits, read.logits)


@every_discriminator
def test_it_builds_on_the_meta_device(kind):
    with torch.device("meta"):
        discriminator = build(kind, (224, 224))
    assert all(parameter.is_meta for parameter in discriminator.parameters())


@pytest.mark.gpu
@every_discriminator
def test_a_gpu_computes_what_a_cpu_computes(kind):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    discriminator, levels = build(kind, (32, 32)).double(), [level.double() for level in pyramid(4, (32, 32))]
    trunk = discriminator.encoder.double() if kind == "token" else nn.Identity()  # the generator's: moved apart
    on_cpu = discriminator(tuple(levels)).logits
    trunk.cuda()
    on_gpu = discriminator.cuda()(tuple(level.cuda() for level in levels)).logits
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=1e-9)
