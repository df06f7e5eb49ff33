"""The StyleGAN2 discriminator: widths, counts, how images join, and what its options change."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discriminators.stylegan2 import StyleGAN2

ARCHITECTURES = ["resnet", "orig", "skip"]


def halved(side: int, levels: int) -> list[tuple[int, int]]:
    return [(side >> level, side >> level) for level in range(levels)]


def pyramid(images: int, side: int, levels: int, seed: int = 0) -> list[Tensor]:
    image = torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return [F.avg_pool2d(image, 2**level) for level in range(levels)]


def build(side: int = 32, levels: int = 4, **options) -> StyleGAN2:
    torch.manual_seed(0)
    return StyleGAN2(halved(side, levels), 3, **{"channel_base": 256, **options})


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- Counts and shapes ---------------------------------------------------------------------------------------------


def test_parameter_count_and_maps_of_the_pyramid_at_224_pixels():
    with torch.device("meta"):
        discriminator = StyleGAN2(halved(224, 6), 3)
        output = discriminator([torch.zeros(2, 3, *size) for size in halved(224, 6)])
    assert parameters(discriminator) == 27_677_761
    merged = [(128, 112, 112), (256, 56, 56), (512, 28, 28), (512, 14, 14), (512, 7, 7)]
    assert [tuple(layer.shape[1:]) for layer in output.features] == merged
    assert output.logits.shape == (2, 1)


@pytest.mark.parametrize("combine", ["sum", "lin_cat"])
def test_widths_of_small_images_follow_the_next_power_of_two(combine):
    def widths(*sizes: tuple[int, int], base: int) -> list[int]:
        discriminator = StyleGAN2(sizes, 3, channel_base=base, combine=combine)
        output = discriminator([torch.zeros(1, 3, *size) for size in sizes])
        return [discriminator.blocks[0].conv0.weight.shape[0], *(layer.shape[1] for layer in output.features)]

    assert widths(*halved(32, 4), base=1024) == [32, 64, 128, 256]
    assert widths(*halved(48, 4), base=1024) == [16, 32, 64, 128]  # 48 counts as 64
    assert widths((32, 64), (16, 32), (8, 16), base=1024) == [16, 32, 64]  # the longer side counts


# --- Gradients and options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("input", "combine"), [("pyramid", "sum"), ("pyramid", "lin_cat"), ("single", "sum")])
def test_every_parameter_and_every_level_has_a_gradient_of_sane_size(architecture, input, combine):
    discriminator = build(architecture=architecture, input=input, combine=combine).double()
    assert discriminator.levels == (4 if input == "pyramid" else 1)
    levels = [level.double().requires_grad_() for level in pyramid(4, 32, 4)]
    discriminator(levels[: discriminator.levels]).logits.sum().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-9, name
    norms = torch.stack([level.grad.norm() for level in levels[: discriminator.levels]])
    assert norms.min() > 1e-3
    assert norms.max() / norms.min() < 100


def test_the_full_resolution_is_not_starved_of_gradient_at_224_pixels():
    discriminator = build(224, 6, channel_base=2048, max_channels=32)
    levels = [level.requires_grad_() for level in pyramid(2, 224, 6)]
    discriminator(levels).logits.mean().backward()
    norms = torch.stack([level.grad.norm() for level in levels])
    assert norms.max() / norms.min() < 1000


@pytest.mark.parametrize("combine", ["sum", "lin_cat"])
def test_every_level_has_layers_of_its_own_from_rgb_and_each_reaches_the_features(combine):
    discriminator = build(combine=combine)
    stages = [*discriminator.blocks, discriminator.epilogue]
    weights = [stage.from_rgb.weight for stage in stages]
    assert len({id(weight) for weight in weights}) == 4
    assert not any(torch.equal(a[:4], b[:4]) for a, b in itertools.combinations(weights, 2))
    levels = [level.requires_grad_() for level in pyramid(2, 32, 4)]
    features = discriminator(levels).features
    for index, layer in enumerate(features):
        gradients = torch.autograd.grad(layer.square().mean(), levels, retain_graph=True, allow_unused=True)
        reached = [gradient is not None and gradient.abs().max().item() > 0 for gradient in gradients]
        assert reached == [True] * (index + 2) + [False] * (2 - index)


@pytest.mark.parametrize("combine", ["sum", "lin_cat"])
def test_a_summed_level_is_trunk_plus_image_over_the_root_of_two(combine):
    discriminator = build(combine=combine).double()
    levels = [level.double() for level in pyramid(2, 32, 4)]
    first, second = discriminator.blocks[0], discriminator.blocks[1]

    def layer(module: nn.Module, images: Tensor, **options: int) -> Tensor:
        return F.conv2d(images, module.weight / math.sqrt(module.weight[0].numel()), **options)

    hidden = math.sqrt(2) * F.leaky_relu(layer(first.from_rgb, levels[0] * 2 - 1), 0.2)
    beside = layer(first.skip, discriminator.blur(hidden, padding=1, step=2))
    hidden = math.sqrt(2) * F.leaky_relu(layer(first.conv0, hidden, padding=1), 0.2)
    hidden = math.sqrt(2) * F.leaky_relu(layer(first.conv1, discriminator.blur(hidden, padding=2), stride=2), 0.2)
    trunk = (hidden + beside) / math.sqrt(2)
    rgb = math.sqrt(2) * F.leaky_relu(layer(second.from_rgb, levels[1] * 2 - 1), 0.2)
    expected = (trunk + rgb) / math.sqrt(2) if combine == "sum" else torch.cat([rgb, trunk], dim=1)
    torch.testing.assert_close(discriminator(levels).features[0], expected)


def test_with_a_pyramid_orig_and_skip_are_one_network():
    levels = pyramid(2, 32, 4)
    assert torch.equal(build(architecture="orig")(levels).logits, build(architecture="skip")(levels).logits)


def test_a_single_image_is_read_alone():
    levels = pyramid(2, 32, 4)
    discriminator = build(input="single")
    assert torch.equal(discriminator(levels).logits, discriminator(levels[:1]).logits)
    assert all(stage.from_rgb is None for stage in [*discriminator.blocks[1:], discriminator.epilogue])


def test_sizes_that_do_not_halve_and_bad_options_are_refused():
    for sizes in ([(32, 32)], [(32, 32), (16, 15)], [(25, 25), (12, 12)]):
        with pytest.raises(ValueError, match="stylegan2 needs"):
            StyleGAN2(sizes, 3)
    for options in (
        {"input": "double"},
        {"architecture": "vgg"},
        {"combine": "simple"},
        {"combine": "lin_cat", "input": "single"},
        {"channel_base": 16},
        {"channel_base": 32, "combine": "lin_cat"},
        {"max_channels": 0},
        {"minibatch_group": "all"},
    ):
        with pytest.raises(ValueError, match="stylegan2"):
            build(**options)


def test_without_minibatch_stddev_an_images_logits_are_its_own():
    alone, together = build(minibatch_stddev=False), build()
    assert parameters(together) - parameters(alone) == 9 * together.epilogue.conv.weight.shape[0]
    levels = pyramid(4, 32, 4)
    with torch.no_grad():
        for discriminator, is_alone in ((alone, True), (together, False)):
            of_one = discriminator([level[:1] for level in levels]).logits
            assert torch.allclose(discriminator(levels).logits[:1], of_one, atol=1e-5) is is_alone


@pytest.mark.parametrize("input", ["pyramid", "single"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_space_to_depth_takes_the_place_of_the_largest_block_and_leaves_the_maps_of_features(architecture, input):
    plain, stem = (build(architecture=architecture, input=input, stem=each) for each in ("plain", "space_to_depth"))
    levels = pyramid(4, 32, 4)
    found, expected = stem(levels), plain(levels)
    assert [each.shape for each in found.features] == [each.shape for each in expected.features]
    assert found.logits.shape == expected.logits.shape
    ratios = [one.std() / other.std() for one, other in zip(found.features, expected.features, strict=True)]
    assert all(1 / 3 < ratio < 3 for ratio in ratios)  # of the same size as a block's
    assert not any(name.startswith("blocks.0.conv") for name in stem.state_dict())
    kept = [name for name in plain.state_dict() if not name.startswith("blocks.0.")]
    assert [name for name in stem.state_dict() if not name.startswith("blocks.0.")] == kept


def test_space_to_depth_is_a_2x2_convolution_of_the_pixels_at_stride_2():
    stem = build(input="single", stem="space_to_depth").double()
    (image, *_) = (level.double() for level in pyramid(2, 32, 4))
    layer = stem.blocks[0].from_pixels
    kernel = layer.weight.view(-1, 3, 2, 2) * layer.scale
    expected = F.leaky_relu(F.conv2d(image * 2 - 1, kernel, layer.bias, stride=2), 0.2) * math.sqrt(2)
    torch.testing.assert_close(stem([image]).features[0], expected)


def test_an_unknown_stem_and_odd_sides_are_refused():
    with pytest.raises(ValueError, match="unknown stem 'other' of stylegan2"):
        build(stem="other")
