"""Networks of torchvision and timm by name, file and layers."""

import zipfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision import models
from torchvision.io import read_image
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.functional import normalize

from perceptual_mae.loss_networks.library import named

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def randomised(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with values of their own, so that statistics and affine weights matter."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: 0.2 + 0.1 * torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in state.items()
    }


@pytest.mark.slow
def test_torchvisions_layers_equal_its_own_feature_extraction(tmp_path: Path) -> None:
    oracle = models.shufflenet_v2_x0_5(weights=None).eval()
    oracle.load_state_dict(randomised(oracle.state_dict()))
    save_file(oracle.state_dict(), tmp_path / "net.safetensors")
    layers = ("stage3.1", "maxpool", "stage2.0.branch1")
    network = named((64, 64), 3, name="shufflenet_v2_x0_5", layers=layers, weights=str(tmp_path / "net.safetensors"))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = create_feature_extractor(oracle, list(layers))(normalize(images, MEAN, STD))
    for own, name in zip(network(images), ("maxpool", "stage2.0.branch1", "stage3.1"), strict=True):
        torch.testing.assert_close(own, expected[name])


@pytest.mark.parametrize(("name", "layers"), [("test_resnet", ("layer1", "layer3")), ("test_vit", ("blocks.1",))])
def test_timms_layers_equal_its_own_features(name: str, layers: tuple[str, ...], tmp_path: Path) -> None:
    oracle = timm.create_model(name, pretrained=False).eval()
    oracle.load_state_dict(randomised(oracle.state_dict()))
    torch.save({"state_dict": oracle.state_dict()}, tmp_path / "net.pt")
    network = named((160, 160), 3, name=name, library="timm", layers=layers, weights=str(tmp_path / "net.pt"))
    images = torch.rand(1, 3, 160, 160)
    places = [[stage["module"] for stage in oracle.feature_info].index(layer) for layer in layers]
    with torch.no_grad():
        expected = oracle.forward_intermediates(normalize(images, MEAN, STD), indices=places, intermediates_only=True)
    for own, theirs in zip(network(images), expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in network.parameters()) < sum(p.numel() for p in oracle.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "resnet19", "layers": ("layer1",)},
            r"torchvision has no network 'resnet19' .*'resnet18'",
        ),
        ({"name": "squeezenet1_0", "layers": ("features.41",)}, "squeezenet1_0 has no layer 'features.41' "),
        ({"name": "squeezenet1_0", "layers": ("stem",)}, "has no layer 'stem'; choose from: features, features.0, "),
        ({"name": "squeezenet1_0", "layers": ()}, "at least one of its layers"),
        (
            {"name": "squeezenet1_0", "layers": ("classifier", "flatten")},
            r"must be maps .* returns \(1, 1000\)",
        ),
        ({"name": "test_rsnet", "layers": ("layer1",), "library": "timm"}, "timm has no network 'test_rsnet'"),
        ({"name": "test_resnet", "layers": ("layer9",), "library": "timm"}, "test_resnet has no layer 'layer9'"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        named((32, 32), 3, weights="random", **options)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save(models.squeezenet1_1(weights=None).state_dict(), tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"the weights of squeezenet1_0: .* another network"):
        named((32, 32), 3, name="squeezenet1_0", layers=("features.4",), weights=str(tmp_path / "net.pt"))


@pytest.mark.data
def test_a_real_network_sees_in_a_photograph_what_torchvision_sees(shared_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_data / "imagenet_photos.zip") as archive:
        member = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[0]
        archive.extract(member, tmp_path)
    photo = read_image(str(tmp_path / member))[None, :, :224, :224].double() / 255
    path = shared_data / "nets" / "imagenet_squeezenet1_0_fp16.safetensors"
    digest = "a5a970aa47e7012780cefc585e40c3adaf394d50f2670d29137f42a67601e207"
    layers = tuple(f"features.{index}" for index in (1, 4, 7, 9, 12))
    network = named((224, 224), 3, name="squeezenet1_0", layers=layers, weights=str(path), sha256=digest).double()
    oracle = models.squeezenet1_0(weights=None).eval().double()
    oracle.load_state_dict({name: value.double() for name, value in load_file(path).items()})
    with torch.no_grad():
        expected = create_feature_extractor(oracle, list(layers))(normalize(photo, MEAN, STD))
    for own, theirs in zip(network(photo), expected.values(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)
        assert float(own.std()) > 0
    assert not network.is_random
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distances = [
        sum(float((a - b).abs().mean()) for a, b in zip(network(photo), network(photo + scale * noise), strict=True))
        for scale in (0.0, 0.05, 0.2)
    ]
    assert distances[0] == 0 < distances[1] < distances[2]
