"""R1 and path length: values worked by hand, units, pyramids, laziness, running mean, what gets a gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from discriminators.penalties import (
    PENALTIES,
    R1,
    PathLength,
    auto_gamma,
    lazy_adam,
    path_length,
    path_lengths,
    path_noise,
    r1,
)


def leaf(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


WEIGHTS = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64).view(1, 3, 1, 1)


def linear(images: torch.Tensor) -> torch.Tensor:
    """D(x) = x1 + 2 x2 + 2 x3 for x in [-1, 1], given images in [0, 1]."""
    return ((2 * images - 1) * WEIGHTS).sum(dim=(1, 2, 3))


def test_r1_of_a_linear_discriminator_is_45_and_lazily_720():
    images = leaf(4, 3, 1, 1)
    assert r1(linear(images), (images,), gamma=10).item() == pytest.approx(45)
    assert R1((1, 1), 4, gamma=10.0)(linear(images), (images,)).item() == pytest.approx(720)
    assert R1((1, 1), 4, gamma=10.0, every=1)(linear(images), (images,)).item() == pytest.approx(45)


def test_r1_of_a_batch_is_the_mean_of_those_of_its_images():
    images = leaf(3, 3, 4, 4)
    together = r1(linear(images.square()), (images,), gamma=1).item()
    alone = [r1(linear(images[[i]].square()), (images,), gamma=1).item() * 3 for i in range(3)]
    assert together == pytest.approx(sum(alone) / 3)


def test_lower_levels_count_as_the_full_size_image_would():
    """A discriminator that reads the level pooled by 4 alone: the penalty equals that at the full size."""
    full = leaf(2, 3, 16, 16)
    weights = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    at_full_size = r1((F.avg_pool2d(full, 4) * weights).sum((1, 2, 3)), (full,), gamma=1)
    small = F.avg_pool2d(full.detach(), 4).requires_grad_()
    received = r1((small * weights).sum((1, 2, 3)), (full, small), gamma=1)  # the full size is not read
    assert received.item() == pytest.approx(at_full_size.item())
    both = (small * weights).sum((1, 2, 3)) + full.square().sum((1, 2, 3))
    expected = received.item() + r1(full.square().sum((1, 2, 3)), (full,), gamma=1).item()
    assert r1(both, (full, small), gamma=1).item() == pytest.approx(expected)


def test_maps_of_logits_add_up_for_an_image():
    images = leaf(2, 3, 4, 4)
    halves = torch.stack([linear(images) / 2, linear(images) / 2], dim=1)
    assert r1(halves, (images,), gamma=10).item() == pytest.approx(r1(linear(images), (images,), gamma=10).item())


def test_every_parameter_has_a_gradient_even_the_last_bias():
    discriminator = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(16, 1)).double()
    images = leaf(2, 3, 4, 4)
    r1(discriminator(images), (images,), gamma=1).backward()
    gradients = {name: parameter.grad for name, parameter in discriminator.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    assert gradients["3.bias"].item() == 0
    assert gradients["0.weight"].abs().max() > 0


def test_penalties_are_taken_in_full_precision():
    images = leaf(2, 3, 8, 8).detach().float().requires_grad_()
    discriminator = nn.Conv2d(3, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        penalty = r1(discriminator(images).flatten(1), (images,), gamma=1)
    assert penalty.dtype == torch.float32
    exact = r1(discriminator(images).flatten(1), (images,), gamma=1)
    assert penalty.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize(
    ("side", "batch", "gamma"),
    [(224, 16, 0.6272), (224, 64, 0.1568), (224, 256, 0.0392), (96, 64, 0.0288), (64, 64, 0.0128), (32, 64, 0.0032)],
)
def test_automatic_gamma_follows_size_and_batch(side, batch, gamma):
    assert R1((side, side), batch).gamma == pytest.approx(gamma, rel=1e-3)
    assert auto_gamma((side, side), batch) == pytest.approx(gamma, rel=1e-3)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (32, 96)])
def test_automatic_gamma_counts_the_pixels_of_images_that_are_not_square(size):
    assert R1(size, 8).gamma == pytest.approx(0.0002 * 3072 / 8)


def test_the_gradient_at_clean_images_passes_through_pooling():
    """Logits that read the half-size level alone: at the clean image each of 4 pixels has a quarter of the weight."""
    clean, weights = leaf(2, 3, 8, 8), torch.randn(3, 4, 4, dtype=torch.float64)
    pyramid = (clean, torch.nn.functional.avg_pool2d(clean, 2))
    penalty = R1((8, 8), 2, gamma=2.0, every=1, leaf="clean_image")
    leaves, shown = penalty.require_input_gradients(pyramid)
    assert [level.shape for level in leaves] == [clean.shape]
    torch.testing.assert_close(shown[1], pyramid[1])
    value = penalty((shown[1] * weights).sum((1, 2, 3)), leaves)
    # gamma / 2 = 1; gradients count in units of [-1, 1], half as large.
    assert value.item() == pytest.approx((4 * (weights / 4 / 2).square()).sum().item())
    levels, received = R1((8, 8), 2, gamma=2.0, every=1).require_input_gradients(pyramid)
    at_level = R1((8, 8), 2, gamma=2.0, every=1)((received[1] * weights).sum((1, 2, 3)), levels)
    assert at_level.item() == pytest.approx(value.item())  # which is what the factor 1 / k^2 is for


def test_lazy_penalties_keep_their_mean_strength():
    images = leaf(2, 3, 4, 4)
    for every in (1, 4, 16):
        penalty = R1((4, 4), 2, gamma=1.0, every=every)
        total = sum(penalty(linear(images), (images,)).item() for step in range(32) if penalty.is_due(step))
        assert total / 32 == pytest.approx(r1(linear(images), (images,), gamma=1).item())
    assert [step for step in range(9) if PathLength((4, 4), 2).is_due(step)] == [0, 4, 8]
    assert not R1((4, 4), 2, gamma=0.0).is_due(0)


def test_images_that_require_gradients_are_fresh_leaves():
    clean = torch.rand(2, 3, 8, 8, requires_grad=True)
    leaves, shown = R1((8, 8), 2).require_input_gradients(
        (clean * 1,), lambda pyramid: tuple(2 * level for level in pyramid)
    )
    assert leaves is shown
    assert leaves[0].is_leaf
    torch.testing.assert_close(leaves[0], 2 * clean)
    with pytest.raises(ValueError, match=r"R1\.require_input_gradients"):
        r1(torch.ones(2), (clean.detach(),), gamma=1)


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


def test_the_table_builds_with_what_the_run_knows():
    assert {kind: type(make((32, 32), 16)) for kind, make in PENALTIES.items()} == {
        "r1": R1,
        "path_length": PathLength,
    }
    for kind, options in (("r1", {"gamma": -1.0}), ("r1", {"every": 0}), ("path_length", {"decay": 0.0})):
        with pytest.raises(ValueError, match=kind):
            PENALTIES[kind]((32, 32), 16, **options)
