"""The projected discriminator: its heads, its frozen network, its gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from discriminators.projected import Projected
from frozen_stand_in import StandIn

SIZES = [(16, 16), (8, 8)]


def build(widths: tuple[int, ...] = (6, 10), **options: object) -> Projected:
    torch.manual_seed(0)
    return Projected(SIZES, 3, network=StandIn(3, widths), **{"width": 4, **options})


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_logits_and_features_are_those_of_its_formula():
    """Maps of mean square 1; 1x1, leaky; (h + 3x3) / sqrt 2, leaky; 1x1: all with weights over their largest
    singular value."""
    discriminator = build().double().eval()
    output = discriminator((images().double(),))
    with torch.no_grad():
        maps = discriminator.network(images().double())
    expected, hidden_maps = [], []
    for head, each in zip(discriminator.heads, maps, strict=True):
        weights = [layer.parametrizations.weight.original for layer in (head.enter, head.mix, head.out)]
        # The parametrisation's estimate of the largest singular value, which is near the exact one.
        normed = [layer.weight for layer in (head.enter, head.mix, head.out)]
        for weight, own in zip(weights, normed, strict=True):
            largest = torch.linalg.matrix_norm(weight.flatten(1), ord=2)
            torch.testing.assert_close(own, weight / largest, rtol=0.1, atol=1e-3)
        each = each / each.square().mean((1, 2, 3), keepdim=True).sqrt()
        hidden = F.leaky_relu(F.conv2d(each, normed[0], head.enter.bias), 0.2)
        hidden = F.leaky_relu((hidden + F.conv2d(hidden, normed[1], head.mix.bias, padding=1)) / 2**0.5, 0.2)
        hidden_maps.append(hidden)
        expected.append(F.conv2d(hidden, normed[2], head.out.bias).flatten(1))
    torch.testing.assert_close(output.logits, torch.cat(expected, dim=1))
    assert output.logits.shape == (2, 8 * 8 + 4 * 4)
    for own, theirs in zip(output.features, hidden_maps, strict=True):
        torch.testing.assert_close(own, theirs)


def test_without_a_spectral_norm_the_convolutions_are_plain():
    assert {name for name, _ in build(norm="none").heads[0].named_parameters()} == {
        f"{layer}.{part}" for layer in ("enter", "mix", "out") for part in ("weight", "bias")
    }
    normed = spectral_norm(nn.Conv2d(3, 4, 1))
    assert any("original" in name for name, _ in normed.named_parameters())
    assert all("original" in name or "bias" in name for name, _ in build().heads.named_parameters())


def test_the_frozen_network_is_no_part_of_weights_or_state():
    discriminator = build()
    network = discriminator.network
    owned = {id(parameter) for parameter in discriminator.parameters()}
    assert not owned & {id(parameter) for parameter in network.parameters()}
    assert all(name.startswith("heads.") for name in discriminator.state_dict())
    assert network not in set(discriminator.modules())
    discriminator.train().requires_grad_(True)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    image = images().requires_grad_()
    discriminator((image,)).logits.square().sum().backward()
    assert image.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_frozen_network_moves_with_it_and_is_copied_with_it():
    discriminator = build().double()
    assert {parameter.dtype for parameter in discriminator.network.parameters()} == {torch.float64}
    assert {parameter.device.type for parameter in build().to("meta").network.parameters()} == {"meta"}
    twin = copy.deepcopy(discriminator)
    assert twin.network is not discriminator.network
    image = images().double()
    assert torch.equal(twin.eval()((image,)).logits, discriminator.eval()((image,)).logits)


def test_the_scale_of_the_network_does_not_matter():
    discriminator = build().double().eval()
    before = discriminator((images().double(),)).logits
    network = discriminator.network
    network.register_forward_hook(lambda module, inputs, outputs: tuple(300 * each for each in outputs))
    torch.testing.assert_close(discriminator((images().double(),)).logits, before)


def test_first_and_second_derivatives_are_those_of_finite_differences():
    discriminator = build((5,), width=3).double().eval()  # evaluation: the power iteration stands still
    image = images(1).double().requires_grad_()
    names, weights = zip(*discriminator.named_parameters(), strict=True)
    inputs = (image, *(weight.detach().requires_grad_() for weight in weights))

    def outputs(image: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = dict(zip(names, weights, strict=True))
        output = torch.func.functional_call(discriminator, values, ((image,),))
        return (output.logits, *output.features)

    assert torch.autograd.gradcheck(outputs, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, inputs, fast_mode=True)


def test_bad_options_and_networks_are_refused():
    for options, message in (({"width": 0}, "width"), ({"norm": "batch"}, "norm 'batch'")):
        with pytest.raises(ValueError, match=message):
            build(**options)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(ValueError, match=r"returns maps \(B, C, H, W\), not \(\(4,\)\)"):
        Projected(SIZES, 3, network=flat)
