"""Adversarial objectives: hand-worked values, optima, batches and positions."""

from math import exp, log1p
from typing import get_args

import pytest
import torch

from perceptual_mae.losses.adversarial import ADVERSARIAL, Kind, adversarial_discriminator, adversarial_generator

KINDS = sorted(ADVERSARIAL)


def logits(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_least_squares_values_worked_by_hand():
    assert adversarial_discriminator(logits(0), logits(2)).item() == 2.5
    assert adversarial_discriminator(logits(0), logits(2), half="real_only").item() == 4.5
    assert adversarial_generator(logits(2)).item() == 0.5
    # The squares are averaged; the square of the average would be 0.
    assert adversarial_discriminator(logits(0, 2), logits(-1, 1)).item() == 1.0


def test_least_squares_rests_at_one_half():
    assert adversarial_discriminator(logits(0.5, 0.5), logits(0.5, 0.5)).item() == 0.25
    assert adversarial_generator(logits(0.5, 0.5)).item() == 0.125
    assert adversarial_discriminator(logits(1), logits(0)).item() == 0


def test_least_squares_pulls_the_generator_by_its_distance_from_one():
    fake = logits(-0.5, 2.0).requires_grad_()
    adversarial_generator(fake).backward()
    assert (fake.grad * 2).tolist() == [-1.5, 1.0]


def test_logistic_values_worked_by_hand():
    assert adversarial_discriminator(logits(0), logits(2), kind="logistic").item() == pytest.approx(2.820075, abs=1e-6)
    assert adversarial_generator(logits(2), kind="logistic").item() == pytest.approx(0.126928, abs=1e-6)
    assert adversarial_generator(logits(-3), kind="logistic").item() == pytest.approx(log1p(exp(3)))


def test_hinge_values_worked_by_hand():
    # real: max(0, 1-.5) = .5 and max(0, 1-3) = 0; fake: max(0, 1-2) = 0 and max(0, 1+1) = 2.
    assert adversarial_discriminator(logits(0.5, 3), logits(-2, 1), kind="hinge").item() == 0.25 + 1.0
    assert adversarial_generator(logits(-2, 1), kind="hinge").item() == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_raising_fake_logits_helps_the_generator_and_harms_the_discriminator_around_the_center(kind):
    center = torch.tensor([ADVERSARIAL[kind].center])
    fake, real = center.clone().requires_grad_(), center.clone().requires_grad_()
    adversarial_generator(fake, kind=kind).backward()
    assert fake.grad.item() < 0
    fake.grad = None
    adversarial_discriminator(real, fake, kind=kind).backward()
    assert fake.grad.item() > 0 > real.grad.item()
    assert fake.grad.item() == pytest.approx(-real.grad.item())  # undecided: both sides pull alike


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 2, 4), (1, 1, 2, 2)])
def test_batch_and_positions_are_averaged_after_the_loss(kind, shape):
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    singles = [adversarial_generator(logit.view(1), kind=kind).item() for logit in fake.flatten()]
    assert adversarial_generator(fake, kind=kind).item() == pytest.approx(sum(singles) / len(singles), rel=1e-5)
    pairs = zip(real.flatten(), fake.flatten(), strict=True)
    singles = [adversarial_discriminator(r.view(1), f.view(1), kind=kind).item() for r, f in pairs]
    assert adversarial_discriminator(real, fake, kind=kind).item() == pytest.approx(
        sum(singles) / len(singles), rel=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_real_and_fake_are_averaged_apart(kind):
    real, fake = torch.tensor([0.3, -0.2, 0.9]), torch.tensor([0.4])
    repeated = adversarial_discriminator(real, fake.expand(3), kind=kind)
    assert adversarial_discriminator(real, fake, kind=kind).item() == pytest.approx(repeated.item())


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_derivative(kind):
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(2, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda r, f: adversarial_discriminator(r, f, kind=kind), (real, fake))
    assert torch.autograd.gradcheck(lambda f: adversarial_generator(f, kind=kind), fake)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_logits_are_evaluated_in_float32(kind):
    real, fake = logits(1.1, -300.0).half(), logits(0.7, 300.0).half()  # 300 squared overflows float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = adversarial_discriminator(real, fake, kind=kind), adversarial_generator(fake, kind=kind)
    expected = (
        adversarial_discriminator(real.float(), fake.float(), kind=kind),
        adversarial_generator(fake.float(), kind=kind),
    )
    for loss, full in zip(losses, expected, strict=True):
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert torch.equal(loss, full)


def test_the_table_and_the_type_name_the_same_kinds():
    assert set(get_args(Kind)) == set(ADVERSARIAL)
    assert {kind: loss.center for kind, loss in ADVERSARIAL.items()} == {
        "least_squares": 0.5,
        "hinge": 0.0,
        "logistic": 0.0,
    }


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="choose from: least_squares, hinge, logistic"):
        adversarial_generator(logits(0), kind="wasserstein")
    with pytest.raises(ValueError, match="choose from: both, real_only"):
        adversarial_discriminator(logits(0), logits(0), half="none")
    with pytest.raises(ValueError, match="belongs to kind least_squares"):
        adversarial_discriminator(logits(0), logits(0), kind="hinge", half="real_only")
