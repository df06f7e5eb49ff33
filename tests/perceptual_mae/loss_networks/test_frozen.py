"""Every loss network is looked through and never changes."""

import pytest
import torch
from torch import Tensor, nn

from perceptual_mae.config.from_signature import first_parameter
from perceptual_mae.loss_networks import LOSS_NETWORKS, FrozenNetwork
from perceptual_mae.loss_networks.frozen import IMAGENET, Taps

SIZE = (32, 32)
CASES = {
    "vgg16": {},
    "dvae": {"width": 16},
    "lpips": {"net": "squeeze"},
    "named": {"name": "shufflenet_v2_x0_5", "layers": ("stage2", "stage3")},  # with batch norm
}
FIXED = [kind for kind, build in LOSS_NETWORKS.items() if first_parameter(build) != "discriminator"]


def build(kind: str, channels: int = 3, **options: object) -> FrozenNetwork:
    torch.manual_seed(0)
    network = LOSS_NETWORKS[kind](SIZE, channels, weights="random", **CASES[kind], **options)
    assert isinstance(network, FrozenNetwork)
    return network


def images(channels: int = 3) -> Tensor:
    return torch.rand(2, channels, *SIZE, generator=torch.Generator().manual_seed(1))


def test_every_fixed_kind_has_a_case_here() -> None:
    assert set(FIXED) == set(CASES)


@pytest.mark.parametrize("kind", FIXED)
def test_features_are_maps_of_every_image_and_carry_gradient_to_it(kind: str) -> None:
    inputs = images().requires_grad_()
    features = build(kind)(inputs)
    assert len(features) > 1
    for feature in features:
        assert feature.ndim == 4
        assert len(feature) == len(inputs)
        assert feature.dtype == torch.float32
        (gradient,) = torch.autograd.grad(feature.square().sum(), inputs, retain_graph=True)
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("kind", FIXED)
def test_weights_get_no_gradient_and_norms_stand_still_even_in_training_mode(kind: str) -> None:
    network = build(kind)
    nn.Sequential(network).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert not any(module.training for module in network.modules())
    torch.stack([feature.sum() for feature in network(images().requires_grad_())]).sum().backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", ["vgg16", "lpips", "named"])
def test_image_size_enlarges_images_before_the_network_sees_them(kind: str) -> None:
    inputs = images().requires_grad_()
    twice = nn.functional.interpolate(inputs, scale_factor=2, mode="bilinear", align_corners=False)
    enlarging = build(kind, image_size=64)
    plain = LOSS_NETWORKS[kind]((64, 64), 3, weights="random", **CASES[kind])
    plain.load_state_dict(enlarging.state_dict())
    for feature, expected in zip(enlarging(inputs), plain(twice), strict=True):
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))
    (gradient,) = torch.autograd.grad(enlarging(inputs)[0].square().sum(), inputs)
    assert float(gradient.abs().sum()) > 0


def test_the_shorter_side_is_enlarged_and_nothing_is_reduced() -> None:
    wide = FrozenNetwork("pool", _Pool(), (10, 30), 3, *IMAGENET, image_size=15)
    assert wide(torch.rand(1, 3, 10, 30))[0].shape[-2:] == (15, 45)
    with pytest.raises(ValueError, match="pool enlarges images: image_size 9 is below their 10 pixels"):
        FrozenNetwork("pool", _Pool(), (10, 30), 3, *IMAGENET, image_size=9)


class _Pool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (images * self.weight,)


@pytest.mark.parametrize("kind", FIXED)
def test_autocast_changes_nothing(kind: str) -> None:
    network = build(kind)
    expected = network(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = network(images())
    assert all(torch.equal(*pair) for pair in zip(features, expected, strict=True))


@pytest.mark.parametrize("kind", FIXED)
def test_a_greyscale_image_is_seen_as_its_three_equal_channels(kind: str) -> None:
    grey = images(1)
    for one, three in zip(build(kind, channels=1)(grey), build(kind)(grey.repeat(1, 3, 1, 1)), strict=True):
        torch.testing.assert_close(one, three)
    with pytest.raises(ValueError, match="RGB or greyscale images, not 4 channels"):
        build(kind, channels=4)


@pytest.mark.parametrize("kind", FIXED)
def test_without_weights_a_network_says_what_to_give_it(kind: str) -> None:
    with pytest.raises(ValueError, match=r"has no weights; set `weights` to a file of .*, or to random"):
        LOSS_NETWORKS[kind](SIZE, 3, **CASES[kind])


@pytest.mark.parametrize("kind", FIXED)
def test_without_memory_a_network_is_checked_and_its_file_is_left_alone(kind: str) -> None:
    with torch.device("meta"):
        network = LOSS_NETWORKS[kind](SIZE, 3, weights="no_such_file.pt", **CASES[kind])
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert not network.is_random


def test_images_are_normalised_at_the_networks_own_door() -> None:
    network = FrozenNetwork("taps", Taps(nn.Sequential(nn.Conv2d(3, 3, 1)), ["0"]), (4, 4), 3, *IMAGENET)
    with torch.no_grad():
        convolution = network.network.layers[0]
        convolution.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
        convolution.bias.zero_()
    (feature,) = network(torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 4, 4))
    torch.testing.assert_close(feature, torch.zeros(1, 3, 4, 4))
    (feature,) = network(torch.tensor([0.485 + 0.229, 0.456 - 0.224, 0.406]).view(1, 3, 1, 1).expand(1, 3, 4, 4))
    torch.testing.assert_close(feature[0, :, 0, 0], torch.tensor([1.0, -1.0, 0.0]))


def test_layers_that_overwrite_their_input_do_not_overwrite_features() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True))
    network = FrozenNetwork("taps", Taps(layers, ["0", "1"]), (8, 8), 3, *IMAGENET)
    before, after = network(images()[..., :8, :8])
    assert float(before.min()) < 0
    torch.testing.assert_close(after, before.relu())


def test_layers_behind_the_last_tap_are_dropped() -> None:
    taps = Taps(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)), ["1"])
    assert [name for name, _ in taps.named_parameters()] == ["layers.0.weight", "layers.0.bias"]


def test_an_image_too_small_and_features_that_are_no_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="taps cannot take images of 2x2 pixels"):
        FrozenNetwork("taps", Taps(nn.Sequential(nn.Conv2d(3, 4, 5)), ["0"]), (2, 2), 3, *IMAGENET)
    with pytest.raises(ValueError, match=r"taps: features must be maps \(B, C, H, W\), but a layer returns \(1, 48\)"):
        FrozenNetwork("taps", Taps(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten()), ["1"]), (4, 4), 3, *IMAGENET)
