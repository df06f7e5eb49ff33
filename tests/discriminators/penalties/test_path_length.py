"""Path length: values worked by hand, its running mean, what gets a gradient."""

import pytest
import torch
from torch import nn

from discriminators.penalties import PathLength, lazy_adam, path_length, path_lengths, path_noise


def leaf(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def test_path_lengths_of_linear_features_worked_by_hand():
    """f = [3 z_1, z_2] of two tokens of width 1, one layer of 2 numbers: g = (3 y_1, y_2) / sqrt 2."""
    latent = leaf(1, 2, 1)
    features = (torch.stack([3 * latent[:, 0], latent[:, 1]], dim=1).unsqueeze(3),)
    noise = (torch.tensor([1.0, -2.0], dtype=torch.float64).view(1, 2, 1, 1),)
    lengths = path_lengths(features, latent, noise)
    assert lengths.tolist() == pytest.approx([((9 * 1 + 4) / 2 / 2) ** 0.5])
    assert path_length(lengths, 1.0).item() == pytest.approx((lengths.item() - 1) ** 2)


def test_path_lengths_do_not_depend_on_how_many_numbers_there_are():
    """The identity has the same mean square length in one layer of 64 and in two of 64, as noise is scaled."""
    latent = leaf(2000, 1, 64)
    same = latent.reshape(2000, 64, 1, 1)
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(2000, 64, 1, 1, generator=generator, dtype=torch.float64) for _ in range(2)]
    one, two = path_lengths((same,), latent, noise[:1]), path_lengths((same, same), latent, noise)
    assert one.square().mean().item() == pytest.approx(1, abs=0.02)
    assert two.square().mean().item() == pytest.approx(1, abs=0.02)


def test_the_running_mean_follows_and_does_not_freeze():
    penalty = PathLength((4, 4), 1)
    latent = leaf(1, 1, 1)
    mean, means, penalties = 0.0, [], []
    for length in (2.0, 5.0, 3.0):
        features = (length * latent.view(1, 1, 1, 1),)
        loss = penalty(features, latent, (torch.ones(1, 1, 1, 1, dtype=torch.float64),))
        penalties.append(loss.item())
        penalty.finish()
        mean += 0.01 * (length - mean)
        means.append(mean)
        assert penalty.mean.item() == pytest.approx(mean)
    assert means == pytest.approx([0.02, 0.0698, 0.099102])
    # Measured only; then weight x interval x the distance to 2, and to (.99 x 2 + 5) / 1.99.
    assert penalties == pytest.approx([0, 8 * (5 - 2) ** 2, 8 * (3 - 6.98 / 1.99) ** 2])
    again = PathLength((4, 4), 1)
    again.load_state_dict(penalty.state_dict())
    assert torch.equal(again.mean, penalty.mean)
    assert torch.equal(again.expected, penalty.expected)


def test_micro_batches_and_processes_do_not_change_loss_or_mean():
    latent = leaf(8, 3, 5)
    generators = [torch.Generator().manual_seed(index) for index in range(8)]
    noise = path_noise([(5, 1, 3)], generators)

    def features(part: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (part.transpose(1, 2).unsqueeze(2).square(),)

    whole = PathLength((4, 4), 8)
    loss = whole(features(latent), latent, noise)
    whole.finish()
    parts = [PathLength((4, 4), 8) for _ in range(2)]
    sums = []
    halves = []
    for rank, part in enumerate(parts):
        for micro in (0, 1):
            mine = slice(2 * rank + micro, None, 4)
            share = latent[mine]
            halves.append(part(features(share), share, (noise[0][mine],)))
        sums.append(part._sums)
    for part in parts:
        part.finish(lambda _: sums[0] + sums[1])
        torch.testing.assert_close(part.mean, whole.mean)
    torch.testing.assert_close(torch.stack(halves).mean(), loss)


def test_path_length_trains_what_makes_the_latent_and_what_reads_it():
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(6, 8).double(), nn.Linear(8, 12).double()
    latent = torch.tanh(encoder(leaf(4, 5, 6)))
    features = (torch.tanh(decoder(latent)).transpose(1, 2).unsqueeze(2),)
    noise = path_noise([(12, 1, 5)], [torch.Generator().manual_seed(index) for index in range(4)])
    penalty = PathLength((4, 4), 4)
    penalty((0.5 * features[0],), latent, noise)  # the first one only measures
    penalty.finish()
    penalty(features, latent, noise).backward()
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_a_length_of_0_has_a_finite_gradient():
    latent = leaf(2, 1, 3)
    weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = path_length(path_lengths(((weight * latent).view(2, 3, 1, 1),), latent, (torch.ones(2, 3, 1, 1),)), 0.5)
    loss.backward()
    assert weight.grad.isfinite()


def test_noise_is_an_images_own():
    shapes = [(2, 4, 4), (3, 1, 1)]
    generators = [torch.Generator().manual_seed(index) for index in (5, 6)]
    together = path_noise(shapes, generators)
    alone = path_noise(shapes, [torch.Generator().manual_seed(6)])
    assert [field.shape for field in together] == [(2, 2, 4, 4), (2, 3, 1, 1)]
    for single, batch in zip(alone, together, strict=True):
        assert torch.equal(single[0], batch[1])


def test_adam_is_corrected_for_a_step_of_its_own():
    lr, betas = lazy_adam(1.0, (0.99, 0.95), 16)
    assert lr == pytest.approx(0.941176, abs=1e-6)
    assert betas == pytest.approx((0.990585, 0.952871), abs=1e-6)
    assert lazy_adam(1.0, (0.9, 0.5), 16)[1] == pytest.approx((0.905595, 0.520808), abs=1e-6)
    lr, betas = lazy_adam(2.0, (0.0, 0.99), 4)
    assert lr == pytest.approx(1.6)
    assert betas == pytest.approx((0.0, 0.991992), abs=1e-6)


def test_it_is_due_once_in_its_interval():
    assert [step for step in range(9) if PathLength((4, 4), 2).is_due(step)] == [0, 4, 8]
    with pytest.raises(ValueError, match="path_length"):
        PathLength((4, 4), 2, decay=0.0)


@pytest.mark.parametrize(
    ("share", "batch", "images"), [(0.5, 8, 4), (0.5, 5, 2), (0.5, 1, 1), (0.29, 100, 29), (0.01, 8, 1), (1.0, 3, 3)]
)
def test_it_is_computed_on_a_share_of_the_images_and_on_one_at_least(share: float, batch: int, images: int) -> None:
    assert PathLength((4, 4), 8, batch_share=share).num_images(batch) == images


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_of_no_images_or_more_than_all_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="batch_share above 0 and at most 1"):
        PathLength((4, 4), 8, batch_share=share)
