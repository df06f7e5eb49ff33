"""The LS-GAN discriminator: widths, counts, sizes, and what its options change."""

import pytest
import torch
from torch import nn

from discriminators.ls_gan import LSGAN


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def feature_shapes(module: LSGAN) -> list[tuple[int, ...]]:
    channels, height, width = module.shape
    output = module((torch.zeros(1, channels, height, width),))
    return [tuple(layer.shape[1:]) for layer in output.features]


@pytest.mark.parametrize(("norm", "count"), [("none", 6_959_553), ("group", 6_962_369), ("spectral", 6_959_553)])
def test_parameter_counts_at_224_pixels(norm, count):
    assert parameters(LSGAN([(224, 224)], 3, norm=norm)) == count


def test_stages_at_224_pixels_and_a_four_by_four_map_of_logits():
    discriminator = LSGAN([(224, 224)], 3)
    expected = [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]
    assert feature_shapes(discriminator) == expected
    assert discriminator((torch.zeros(2, 3, 224, 224),)).logits.shape == (2, 4, 4)


def test_stages_of_small_images():
    assert feature_shapes(LSGAN([(32, 32)], 3)) == [(64, 16, 16), (128, 8, 8), (256, 4, 4)]
    small = LSGAN([(32, 32)], 3, base_channels=32, norm="none")
    assert feature_shapes(small) == [(32, 16, 16), (64, 8, 8), (128, 4, 4)]
    assert parameters(small) == 167_649
    assert feature_shapes(LSGAN([(32, 32)], 3, base_channels=8, max_channels=16)) == [
        (8, 16, 16),
        (16, 8, 8),
        (16, 4, 4),
    ]


def test_patch_form_sees_seventy_pixels_and_drops_a_stage_below_64():
    large = LSGAN([(224, 224)], 3, form="patch")
    assert feature_shapes(large) == [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 27, 27)]
    small = LSGAN([(32, 32)], 3, form="patch")
    assert feature_shapes(small) == [(64, 16, 16), (128, 8, 8), (512, 7, 7)]

    # Without norms, the logit in the middle depends on 70x70 pixels and no more.
    discriminator = LSGAN([(128, 128)], 1, form="patch", base_channels=4, norm="none")
    image = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = discriminator((image,)).logits
    assert logits.shape == (1, 14, 14)
    (gradient,) = torch.autograd.grad(logits[0, 7, 7], image)
    rows = gradient[0, 0].abs().sum(dim=1).nonzero()
    assert (rows.max() - rows.min() + 1).item() == 70


def test_images_are_mapped_to_minus_one_to_one_at_the_door():
    discriminator = LSGAN([(16, 16)], 3, base_channels=4, norm="none")
    grey = discriminator((torch.full((1, 3, 16, 16), 0.5),)).features[0]
    bias = discriminator.stages[0][0].bias
    torch.testing.assert_close(grey[0, :, 3, 3], nn.functional.leaky_relu(bias, 0.2))


def test_it_reads_the_largest_level_alone():
    discriminator = LSGAN([(32, 32), (16, 16)], 3, base_channels=8)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with_low_level = discriminator((image, torch.full((2, 3, 16, 16), float("nan"))))
    assert discriminator.levels == 1
    assert torch.equal(with_low_level.logits, discriminator((image,)).logits)


@pytest.mark.parametrize("norm", ["group", "none", "instance", "spectral"])
@pytest.mark.parametrize("form", ["dcgan", "patch"])
def test_every_parameter_matters_under_every_norm_and_width(form, norm):
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for base_channels in (4, 12, 16, 48):
        discriminator = LSGAN([(32, 48)], 3, form=form, norm=norm, base_channels=base_channels).double()
        discriminator((images,)).logits.square().mean().backward()
        for name, parameter in discriminator.named_parameters():
            assert parameter.grad is not None, (base_channels, name)
            assert parameter.grad.abs().max() > 1e-9, (base_channels, name)


@pytest.mark.parametrize("norm", ["group", "none", "instance", "spectral"])
@pytest.mark.parametrize("form", ["dcgan", "patch"])
def test_the_answer_for_an_image_does_not_depend_on_the_others(form, norm):
    discriminator = LSGAN([(32, 32)], 3, form=form, norm=norm, base_channels=16).eval()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = discriminator((images,))
        for index in range(3):
            alone = discriminator((images[index : index + 1],))
            torch.testing.assert_close(alone.logits[0], together.logits[index])
            for single, batch in zip(alone.features, together.features, strict=True):
                torch.testing.assert_close(single[0], batch[index])


def test_no_batch_normalisation():
    for norm in ("group", "none", "instance", "spectral"):
        modules = LSGAN([(64, 64)], 3, norm=norm).modules()
        assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)


def test_spectral_norm_bounds_the_convolutions():
    torch.manual_seed(0)
    discriminator = LSGAN([(16, 16)], 3, base_channels=8, norm="spectral")
    images = torch.rand(1, 3, 16, 16)
    for _ in range(30):  # power iteration
        discriminator((images,))
    for weight in (discriminator.head.weight, discriminator.stages[1][0].weight):
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("form", "smallest"), [("dcgan", 8), ("patch", 12)])
def test_images_too_small_are_refused_and_the_smallest_works(form, smallest):
    with pytest.raises(ValueError, match=f"at least {smallest} pixels"):
        LSGAN([(64, smallest - 1)], 3, form=form)
    output = LSGAN([(smallest, smallest)], 1, form=form, base_channels=4)((torch.zeros(1, 1, smallest, smallest),))
    assert output.logits.numel() >= 1


def test_bad_options_and_foreign_images_are_refused():
    for options in (
        {"form": "unet"},
        {"norm": "batch"},
        {"base_channels": 0},
        {"base_channels": 64, "max_channels": 32},
    ):
        with pytest.raises(ValueError, match="ls_gan"):
            LSGAN([(32, 32)], 3, **options)
    discriminator = LSGAN([(32, 32)], 3, base_channels=4)
    for shape in ((1, 3, 64, 64), (1, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(ValueError, match=r"built for images \(B, 3, 32, 32\)"):
            discriminator((torch.zeros(shape),))


def test_space_to_depth_takes_the_place_of_the_first_stage():
    discriminator = LSGAN([(224, 224)], 3, stem="space_to_depth")
    assert feature_shapes(discriminator) == [(128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]
    assert discriminator((torch.zeros(2, 3, 224, 224),)).logits.shape == (2, 4, 4)
    assert discriminator.stages[0][0].weight.shape == (128, 12, 4, 4)


def test_its_first_stage_is_an_8x8_convolution_of_the_pixels_whose_2x2s_are_channels():
    discriminator = LSGAN([(32, 32)], 3, stem="space_to_depth").double()
    convolution = discriminator.stages[0][0]
    image = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    kernel = convolution.weight.view(128, 3, 2, 2, 4, 4).permute(0, 1, 4, 2, 5, 3).reshape(128, 3, 8, 8)
    expected = nn.functional.conv2d(image * 2 - 1, kernel, convolution.bias, stride=4, padding=2)
    torch.testing.assert_close(discriminator((image,)).features[0], nn.functional.leaky_relu(expected, 0.2))


@pytest.mark.parametrize(("form", "smallest"), [("dcgan", 16), ("patch", 12)])
def test_space_to_depth_leaves_one_stage_and_needs_even_sides(form, smallest):
    discriminator = LSGAN([(smallest, smallest)], 3, form=form, stem="space_to_depth")
    assert len(discriminator((torch.rand(1, 3, smallest, smallest),)).features) >= 1
    with pytest.raises(ValueError, match="too small"):
        LSGAN([(smallest - 2, smallest - 2)], 3, form=form, stem="space_to_depth")
    with pytest.raises(ValueError, match="needs even sides"):
        LSGAN([(33, 32)], 3, form=form, stem="space_to_depth")
    with pytest.raises(ValueError, match="unknown stem"):
        LSGAN([(32, 32)], 3, stem="other")
