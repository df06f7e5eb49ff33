"""The snapshot follows the discriminator in its epochs and stands still in between."""

import pytest
import torch

from discriminators import DISCRIMINATORS
from frozen_stand_in import make_discriminator
from perceptual_mae.loss_networks.discriminator_features import Snapshot

SIZES = [(32, 32), (16, 16), (8, 8), (4, 4)]
SMALL = {"ls_gan": {"base_channels": 8}, "msg_gan": {"base_channels": 8}, "stylegan2": {"channel_base": 128}}


def discriminator(kind: str = "ls_gan", **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return make_discriminator(kind, SIZES, 3, **SMALL.get(kind, {}), **options)


def mark(network: torch.nn.Module) -> float:
    return float(next(network.parameters()).detach().flatten()[0])


@pytest.mark.parametrize(("every", "due"), [(5, {1, 6, 11}), (3, {1, 4, 7, 10}), (1, set(range(1, 12)))])
def test_it_follows_in_epochs_one_and_every_nth_after_it(every: int, due: set[int]) -> None:
    live = discriminator()
    snapshot = Snapshot(live, every=every)
    expected = mark(live)
    for epoch in range(1, 12):
        for step in range(3):  # in every step of an epoch that is due
            with torch.no_grad():
                next(live.parameters()).fill_(100 * epoch + step)
            snapshot.follow(live, epoch)
            expected = 100 * epoch + step if epoch in due else expected
            assert mark(snapshot.copy) == expected


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_its_features_are_those_of_the_discriminator_it_followed(kind: str) -> None:
    live = discriminator(kind)
    snapshot = Snapshot(live)
    pyramid = tuple(torch.rand(4, 3, *size) for size in SIZES)
    with torch.no_grad():
        for parameter in live.parameters():
            parameter.add_(0.01)
        assert not torch.equal(snapshot(pyramid)[0], live(pyramid).features[0])
        snapshot.follow(live, 6)
        for own, theirs in zip(snapshot(pyramid), live(pyramid).features, strict=True):
            assert torch.equal(own, theirs)


def test_it_takes_over_the_buffers_of_a_spectral_norm() -> None:
    live = discriminator(norm="spectral").train()
    snapshot = Snapshot(live)
    live((torch.rand(2, 3, 32, 32),))  # one power iteration
    states = snapshot.copy.state_dict(), live.state_dict()
    assert any(not torch.equal(value, states[1][name]) for name, value in states[0].items())
    snapshot.follow(live, 1)
    assert all(torch.equal(value, live.state_dict()[name]) for name, value in snapshot.copy.state_dict().items())


def test_it_is_frozen_and_leaves_the_discriminator_to_learn() -> None:
    live = discriminator(norm="spectral").train()
    snapshot = Snapshot(live).train()
    assert not any(module.training for module in snapshot.modules())
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    torch.stack([feature.sum() for feature in snapshot((images,))]).sum().backward()
    assert float(images.grad.abs().sum()) > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in snapshot.parameters())
    assert all(parameter.requires_grad for parameter in live.parameters())


def test_it_needs_an_interval() -> None:
    with pytest.raises(ValueError, match="every >= 1"):
        Snapshot(discriminator(), every=0)
