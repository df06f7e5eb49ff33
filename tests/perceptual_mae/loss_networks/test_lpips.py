"""The trunks of LPIPS see what they see in its own package."""

from collections.abc import Callable
from functools import cache

import lpips
import pytest
import torch

from perceptual_mae.loss_networks.lpips import lpips_trunk

pytestmark = pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight")

NETS = ("alex", "vgg", "squeeze")


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[lpips.LPIPS, str]]:
    """LPIPS with a random trunk and its published heads, and the trunk in a file with torchvision's names."""

    @cache
    def make(net: str) -> tuple[lpips.LPIPS, str]:
        torch.manual_seed(0)
        made = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        path = tmp_path_factory.mktemp(net) / "trunk.pth"
        torch.save({f"features.{name.partition('.')[2]}": value for name, value in made.net.state_dict().items()}, path)
        return made, str(path)

    return make


@pytest.mark.parametrize("net", [pytest.param(net, marks=[pytest.mark.slow] * (net == "vgg")) for net in NETS])
def test_features_equal_the_packages(net: str, oracle: Callable[[str], tuple[lpips.LPIPS, str]]) -> None:
    theirs, path = oracle(net)
    network = lpips_trunk((32, 32), 3, net=net, weights=path)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.net(theirs.scaling_layer(2 * images - 1))
    for own, feature in zip(network(images), expected, strict=True):
        torch.testing.assert_close(own, feature, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_calibrated_features_are_as_far_apart_as_lpips_says(
    net: str, oracle: Callable[[str], tuple[lpips.LPIPS, str]]
) -> None:
    theirs, path = oracle(net)
    network = lpips_trunk((32, 32), 3, net=net, weights=path, calibrated=True)
    one, other = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    pairs = zip(network(one), network(other), strict=True)
    distance = torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]).sum(0)
    with torch.no_grad():
        torch.testing.assert_close(distance, theirs(one, other, normalize=True).flatten(), rtol=1e-4, atol=1e-6)


def test_a_place_where_no_channel_fires_has_a_finite_gradient(oracle: Callable[[str], tuple[lpips.LPIPS, str]]) -> None:
    network = lpips_trunk((32, 32), 3, weights=oracle("alex")[1], calibrated=True)
    with torch.no_grad():
        network.network.trunk.slice1[0].weight.zero_()
        network.network.trunk.slice1[0].bias.fill_(-1)
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    torch.stack([feature.sum() for feature in network(image)]).sum().backward()
    assert bool(image.grad.isfinite().all())


@pytest.mark.parametrize(("net", "smallest"), [("alex", 32), ("vgg", 16), ("squeeze", 24)])
def test_images_that_are_too_small_are_refused(net: str, smallest: int) -> None:
    lpips_trunk((smallest, smallest), 3, net=net, weights="random")
    with pytest.raises(ValueError, match="lpips cannot take images of 8x8"):
        lpips_trunk((8, 8), 3, net=net, weights="random")
