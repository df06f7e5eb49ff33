"""The MSG-GAN discriminator: widths, counts, where images join, and what its options change."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discriminators.layers import EqualizedConv2d
from discriminators.msg_gan import MSGGAN

COMBINES = ["lin_cat", "simple", "cat_lin", "sum"]


def halved(side: int, levels: int) -> list[tuple[int, int]]:
    return [(side >> level, side >> level) for level in range(levels)]


def pyramid(images: int, side: int, levels: int, seed: int = 0) -> list[Tensor]:
    image = torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return [F.avg_pool2d(image, 2**level) for level in range(levels)]


def build(side: int = 32, levels: int = 4, **options) -> MSGGAN:
    torch.manual_seed(0)
    return MSGGAN(halved(side, levels), 3, **{"base_channels": 8, **options})


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shapes(side: int, levels: int, **options) -> list[tuple[int, ...]]:
    with torch.device("meta"):
        output = MSGGAN(halved(side, levels), 3, **options)([torch.zeros(1, 3, *size) for size in halved(side, levels)])
    return [tuple(layer.shape[1:]) for layer in (*output.features, output.logits)]


@pytest.mark.parametrize(("base_channels", "count"), [(64, 15_192_449), (32, 11_670_209)])
def test_parameter_counts_at_224_pixels(base_channels, count):
    with torch.device("meta"):
        assert parameters(MSGGAN(halved(224, 6), 3, base_channels=base_channels)) == count


def test_merged_maps_and_sixteen_logits_at_224_pixels():
    merged = [(128, 112, 112), (256, 56, 56), (512, 28, 28), (512, 14, 14), (512, 7, 7)]
    assert shapes(224, 6) == [*merged, (4, 4)]
    blocks = [(64, 112, 112), (128, 56, 56), (256, 28, 28), (256, 14, 14), (256, 7, 7)]
    assert shapes(224, 6, feature_point="block") == [*blocks, (4, 4)]


@pytest.mark.parametrize("combine", COMBINES)
def test_widths_of_small_images_under_every_way_to_combine(combine):
    extra = 3 if combine == "simple" else 0
    expected = [(64 + extra, 16, 16), (128 + extra, 8, 8), (256 + extra, 4, 4), (1, 1)]
    assert shapes(32, 4, base_channels=32, combine=combine) == expected
    assert shapes(96, 5, base_channels=32, combine=combine)[-2:] == [(512 + extra, 6, 6), (3, 3)]
    assert shapes(32, 3, base_channels=32, max_channels=64, combine=combine)[-2:] == [(64 + extra, 8, 8), (5, 5)]


def test_every_level_has_layers_of_its_own_from_rgb_as_wide_as_the_trunk():
    discriminator = build(base_channels=64, levels=4)
    layers = [discriminator.from_rgb, *(merge.from_rgb for merge in discriminator.merges)]
    assert [layer.weight.shape[0] for layer in layers] == [64, 64, 128, 256]
    assert len({id(layer.weight) for layer in layers}) == 4
    assert not any(torch.equal(a.weight[:64], b.weight[:64]) for a, b in itertools.combinations(layers, 2))


@pytest.mark.parametrize("equalized_lr", [True, False])
@pytest.mark.parametrize("combine", COMBINES)
def test_every_parameter_and_every_level_has_a_gradient_of_sane_size(combine, equalized_lr):
    discriminator = build(combine=combine, equalized_lr=equalized_lr).double()
    levels = [level.double().requires_grad_() for level in pyramid(4, 32, 4)]
    discriminator(levels).logits.sum().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-9, name
    norms = torch.stack([level.grad.norm() for level in levels])
    assert norms.min() > 1e-3
    assert norms.max() / norms.min() < 100


def test_the_full_resolution_is_not_starved_of_gradient_at_224_pixels():
    discriminator = build(224, 6, base_channels=4, max_channels=32)
    levels = [level.requires_grad_() for level in pyramid(2, 224, 6)]
    discriminator(levels).logits.mean().backward()
    norms = torch.stack([level.grad.norm() for level in levels])
    assert norms.max() / norms.min() < 300  # PyTorch's own initialisation: a million


@pytest.mark.parametrize("feature_point", ["merged", "block"])
@pytest.mark.parametrize("combine", COMBINES)
def test_only_merged_features_carry_a_gradient_to_the_smallest_image(combine, feature_point):
    discriminator = build(combine=combine, feature_point=feature_point)
    levels = [level.requires_grad_() for level in pyramid(2, 32, 4)]
    loss = sum(layer.square().mean() for layer in discriminator(levels).features)
    gradients = torch.autograd.grad(loss, levels, allow_unused=True)
    assert all(gradient.abs().max() > 0 for gradient in gradients[:-1])
    assert (gradients[-1] is not None) == (feature_point == "merged")


@pytest.mark.parametrize("combine", ["lin_cat", "simple", "sum"])
def test_the_trunk_is_halved_by_averaging_and_joined_as_its_option_says(combine):
    """Layer by layer from the module's own convolutions, with pooling and joining written out."""
    merged, trunk_only = (build(combine=combine, feature_point=point) for point in ("merged", "block"))
    levels = pyramid(2, 32, 4)
    hidden = merged.from_rgb(2 * levels[0] - 1)
    features = zip(merged(levels).features, trunk_only(levels).features, strict=True)
    layers = zip(merged.blocks, merged.merges, levels[1:], features, strict=True)
    for block, merge, images, (joined, trunk) in layers:
        hidden = block(hidden)
        averaged = (
            hidden[..., ::2, ::2] + hidden[..., 1::2, ::2] + hidden[..., ::2, 1::2] + hidden[..., 1::2, 1::2]
        ) / 4
        torch.testing.assert_close(trunk, averaged)
        rgb = 2 * images - 1 if combine == "simple" else merge.from_rgb(2 * images - 1)
        hidden = (averaged + rgb) / 2**0.5 if combine == "sum" else torch.cat([rgb, averaged], dim=1)
        torch.testing.assert_close(joined, hidden)


def test_a_sum_of_independent_maps_keeps_their_variance():
    merge = build(combine="sum").merges[0]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 8, 8, generator=generator)
    rgb = merge.from_rgb(images)
    trunk = torch.randn(rgb.shape, generator=generator) * rgb.std()
    assert merge(trunk, images).std().item() == pytest.approx(rgb.std().item(), rel=0.05)


def test_equalised_learning_rates_are_the_default():
    torch.manual_seed(0)
    default = MSGGAN(halved(32, 4), 3, base_channels=8)
    convolutions = [module for module in default.modules() if isinstance(module, EqualizedConv2d)]
    for convolution in convolutions:
        assert convolution.scale == pytest.approx((2 / convolution.weight[0].numel()) ** 0.5)
    wide = [convolution.weight for convolution in convolutions if convolution.weight.numel() > 500]
    assert len(wide) > 5
    assert all(weight.std().item() == pytest.approx(1, abs=0.13) for weight in wide)  # 4 sigma
    assert all(
        convolution.scale == 1 for convolution in build(equalized_lr=False).modules() if hasattr(convolution, "scale")
    )


def test_images_are_mapped_to_minus_one_to_one_and_come_before_the_trunk():
    discriminator = build(combine="simple")
    grey = [torch.full((1, 3, 32 >> level, 32 >> level), 0.75) for level in range(4)]
    for layer in discriminator(grey).features:
        torch.testing.assert_close(layer[:, :3], torch.full_like(layer[:, :3], 0.5))
    discriminator = build(combine="lin_cat")
    features = discriminator([torch.full_like(level, 0.5) for level in grey]).features
    assert all(not layer.any() for layer in features)  # grey is 0 on every level, and so are the biases
    features = discriminator([torch.full_like(grey[0], 0.75), *(torch.full_like(level, 0.5) for level in grey[1:])])[1]
    rgb, trunk = features[0].chunk(2, dim=1)
    assert not rgb.any()
    assert trunk.any()


def test_equalised_learning_rate_changes_the_learning_and_not_the_start():
    levels = pyramid(4, 32, 4)
    equalized, plain = build(equalized_lr=True), build(equalized_lr=False)
    torch.testing.assert_close(equalized(levels).logits, plain(levels).logits, atol=1e-4, rtol=1e-4)
    assert equalized.from_rgb.weight.std() > plain.from_rgb.weight.std()


def test_the_group_of_the_minibatch_stddev_is_an_option():
    levels = pyramid(8, 32, 4)
    alone = torch.cat([build()([level[i : i + 1] for level in levels]).logits for i in range(8)])
    by_option = {group: build(minibatch_group=group)(levels).logits for group in (1, 4, 8, "batch")}
    torch.testing.assert_close(by_option[1], alone)
    assert torch.equal(by_option[8], by_option["batch"])
    assert not torch.allclose(by_option[4], by_option[1])
    assert not torch.allclose(by_option[4], by_option["batch"])
    # Images i and i + 4 are one group: samples dealt out by stride keep their groups of 2.
    halves = [build(minibatch_group=2)([level[i::2] for level in levels]).logits for i in (0, 1)]
    torch.testing.assert_close(torch.stack(halves, dim=1).flatten(0, 1), build(minibatch_group=2)(levels).logits)


def test_sizes_that_do_not_halve_and_bad_options_are_refused():
    for sizes in ([(32, 32)], [(32, 32), (16, 15)], [(25, 25), (12, 12)], halved(32, 5), [(32, 32), (8, 8)]):
        with pytest.raises(ValueError, match="msg_gan needs"):
            MSGGAN(sizes, 3)
    for options in (
        {"combine": "cat"},
        {"feature_point": "last"},
        {"base_channels": 0},
        {"base_channels": 64, "max_channels": 32},
        {"max_channels": 65},
        {"minibatch_group": 0},
    ):
        with pytest.raises(ValueError, match="msg_gan"):
            build(**{"base_channels": 16, **options})
    levels = pyramid(2, 32, 4)
    with pytest.raises(ValueError, match=r"built for 4 level\(s\) \(B, 3, 32, 32\)"):
        build()([*levels[:3], levels[3][:1]])  # one image too few
