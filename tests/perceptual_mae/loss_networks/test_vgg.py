"""VGG-16 as torchvision has it."""

from pathlib import Path

import pytest
import torch
from torchvision import models
from torchvision.transforms.functional import normalize

from perceptual_mae.loss_networks.vgg import vgg16

JOHNSON = {"relu1_2": "3", "relu2_2": "8", "relu3_3": "15", "relu4_3": "22"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, torch.Tensor]]:
    """A file with torchvision's names (of the features and one of the classifier's), and what it holds."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in models.vgg16().state_dict().items() if "features" in name}
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for value in state.values():
        value.mul_((2 / value[0].numel()) ** 0.5 if value.ndim == 4 else 0.1)  # He's, so that sizes stay about 1
    state["classifier.6.bias"] = torch.zeros(1000)
    path: Path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return str(path), state


def test_the_whole_trunk_has_vgg16s_convolutions_and_johnsons_layers_fewer() -> None:
    with torch.device("meta"):
        whole = vgg16((224, 224), 3, weights="random", layers=("relu5_3",))
        johnson = vgg16((224, 224), 3, weights="random")
        official = vgg16((224, 224), 3, weights="random", layers=("pool1", "pool2", "pool3"))
        maps = [network.network(torch.zeros(1, 3, 224, 224)) for network in (johnson, official)]
    shapes = [[tuple(feature.shape[1:]) for feature in features] for features in maps]
    assert sum(parameter.numel() for parameter in whole.parameters()) == 14_714_688
    assert shapes[0] == [(64, 224, 224), (128, 112, 112), (256, 56, 56), (512, 28, 28)]
    assert shapes[1] == [(64, 112, 112), (128, 56, 56), (256, 28, 28)]
    # three 3x3 convolutions of 512 channels less than the whole
    assert sum(parameter.numel() for parameter in johnson.parameters()) == 14_714_688 - 3 * (512 * 512 * 9 + 512)


@pytest.mark.slow
def test_features_equal_torchvisions_own(published: tuple[str, dict[str, torch.Tensor]]) -> None:
    path, state = published
    network = vgg16((32, 32), 3, weights=path, layers=("pool3", *JOHNSON)).double()  # in any order
    with torch.device("meta"):
        trunk = models.vgg16().features
    trunk.to_empty(device="cpu")
    trunk.load_state_dict(
        {name.removeprefix("features."): value for name, value in state.items() if "features" in name}
    )
    trunk.double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    hidden, expected = normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), []
    with torch.no_grad():
        for name, layer in trunk.named_children():
            hidden = layer(hidden)
            if name in (*JOHNSON.values(), "16"):
                expected.append(hidden.clone())
    for own, theirs in zip(network(images), expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-5)


def test_random_weights_keep_the_size_of_what_passes_and_follow_the_seed() -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(vgg16((32, 32), 3, weights="random")(torch.rand(2, 3, 32, 32, generator=torch.manual_seed(5))))
    assert all(0.1 < float(feature.std()) < 10 for feature in drawn[0])
    assert torch.equal(drawn[0][-1], drawn[1][-1])
    assert not torch.equal(drawn[0][-1], drawn[2][-1])


def test_unknown_layers_are_refused() -> None:
    for layers in ((), ("conv1_1",)):
        with pytest.raises(ValueError, match=r"vgg16 has no layers .*; choose from: relu1_2, pool1"):
            vgg16((32, 32), 3, weights="random", layers=layers)
