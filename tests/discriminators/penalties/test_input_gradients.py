"""R1 and R2: values worked by hand, units, pyramids, laziness, ramps, what gets a gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from discriminators.penalties import PENALTIES, R1, R2, auto_gamma, gradient_penalty, leaves_of, r1
from discriminators.ramp import Ramp


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
    assert [step for step in range(33) if R2((4, 4), 2).is_due(step)] == [0, 16, 32]
    assert not R1((4, 4), 2, gamma=0.0).is_due(0)


def test_images_that_require_gradients_are_fresh_leaves():
    clean = torch.rand(2, 3, 8, 8, requires_grad=True)
    leaves, shown = R1((8, 8), 2).require_input_gradients(
        (clean * 1,), lambda pyramid: tuple(2 * level for level in pyramid)
    )
    assert leaves is shown
    assert leaves[0].is_leaf
    torch.testing.assert_close(leaves[0], 2 * clean)
    with pytest.raises(ValueError, match=r"R1\.require_input_gradients or leaves_of"):
        r1(torch.ones(2), (clean.detach(),), gamma=1)


def test_r1_and_r2_of_a_linear_discriminator_are_gamma_times_its_squared_weights():
    """D(x) = w x for x in [-1, 1]: gamma / 2 |w|^2 each, with |w|^2 = 9."""
    real, fake = leaf(4, 3, 1, 1), leaf(4, 3, 1, 1) ** 2
    leaves = leaves_of((fake,))
    both = R1((1, 1), 4, gamma=0.5, every=1)(linear(real), (real,))
    both = both + R2((1, 1), 4, gamma=0.5, every=1)(linear(leaves[0]), leaves)
    assert both.item() == pytest.approx(0.5 * 9)
    assert R2((1, 1), 4, gamma=0.5, every=4)(linear(leaves[0]), leaves).item() == pytest.approx(4 * 0.25 * 9)


def test_a_level_pooled_from_another_has_a_gradient_of_its_own():
    """Of sum(full) + 3 sum(half): without new nodes the half's gradient would count at the full size, too."""
    full = leaf(1, 1, 4, 4) * 2
    leaves = leaves_of((full, F.avg_pool2d(full, 2)))
    penalty = gradient_penalty((leaves[0].sum() + 3 * leaves[1].sum()).view(1), leaves, gamma=2)
    assert penalty.item() == pytest.approx(16 * 1 / 4 + 4 * 9 / 4 / 2**2)
    (through,) = torch.autograd.grad(leaves[0].sum() + 3 * leaves[1].sum(), full)
    torch.testing.assert_close(through, torch.full_like(full, 1 + 3 / 4))  # the graph to the generator is whole
    plain = torch.rand(1, 1, 2, 2)
    (fresh,) = leaves_of((plain,))
    assert fresh.requires_grad
    assert fresh.is_leaf
    assert not plain.requires_grad


def test_the_gradients_of_r2_are_those_of_finite_differences():
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(16, 1)).double()
    weight = discriminator[0].weight.detach().requires_grad_()
    fake = leaf(2, 3, 4, 4)

    def penalty(weight: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        leaves = leaves_of((fake, F.avg_pool2d(fake, 2)))
        logits = discriminator[1:](F.conv2d(leaves[0], weight)) + F.softplus(leaves[1]).sum((1, 2, 3))[:, None]
        return R2((4, 4), 2, gamma=0.3)(logits, leaves)

    assert torch.autograd.gradcheck(penalty, (weight, fake))


def test_gamma_follows_its_ramp():
    images = leaf(4, 3, 1, 1)
    ramp = Ramp.model_validate({"from": 0.05, "to": 0.005, "over": 0.5, "shape": "cosine"})
    for kind in (R1, R2):
        penalty = kind((1, 1), 4, gamma=ramp, every=1)
        values = [penalty(linear(images), (images,), fraction).item() for fraction in (0.0, 0.25, 0.5, 1.0)]
        assert values == pytest.approx([gamma / 2 * 9 for gamma in (0.05, 0.0275, 0.005, 0.005)])
    assert penalty(linear(images), (images,)).item() == pytest.approx(values[0])
    rises = R1((1, 1), 4, gamma=Ramp(start=0.0, end=1.0))
    assert rises.is_due(0)
    assert rises(linear(images), (images,), 0.0).item() == 0
    assert not R1((1, 1), 4, gamma=Ramp(start=0.0, end=0.0)).is_due(0)


@pytest.mark.parametrize("kind", ["r1", "r2"])
@pytest.mark.parametrize("options", [{"gamma": -1.0}, {"gamma": Ramp(start=1.0, end=-0.1)}, {"every": 0}])
def test_options_out_of_range_are_refused(kind, options):
    with pytest.raises(ValueError, match=kind):
        PENALTIES[kind]((32, 32), 16, **options)


@pytest.mark.parametrize("penalty", [R1, R2])
def test_a_share_of_the_batch_are_leaves_of_its_first_images(penalty):
    levels = [torch.rand(5, 3, side, side) for side in (8, 4)]
    leaves = penalty((8, 8), 5, batch_share=0.5).part(levels)
    assert all(torch.equal(leaf, level[:2]) for leaf, level in zip(leaves, levels, strict=True))
    assert all(leaf.is_leaf and leaf.requires_grad for leaf in leaves)
    assert len(penalty((8, 8), 5, batch_share=0.01).part(levels)[0]) == 1


def test_the_leaves_of_a_share_are_augmented_and_the_whole_batch_is_shown_without_them():
    real = [torch.rand(4, 3, 8, 8)]
    leaves, shown = R1((8, 8), 4, batch_share=0.25).require_input_gradients(real, lambda levels: [1 - levels[0]])
    assert torch.equal(shown[0], 1 - real[0])
    assert not shown[0].requires_grad
    assert torch.equal(leaves[0], shown[0][:1])


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
@pytest.mark.parametrize("penalty", [R1, R2])
def test_a_share_of_no_images_or_more_than_all_is_refused(penalty, share):
    with pytest.raises(ValueError, match="batch_share above 0 and at most 1"):
        penalty((8, 8), 4, batch_share=share)
