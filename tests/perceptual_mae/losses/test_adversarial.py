"""Adversarial objectives: hand-worked values, optima, batches and positions."""

from math import exp, log1p
from typing import get_args

import pytest
import torch

from perceptual_mae.losses.adversarial import (
    ADVERSARIAL,
    Kind,
    adversarial_discriminator,
    adversarial_generator,
    hidden_share,
)

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
    adversarial_generator(fake, real.detach(), kind=kind).backward()
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
    pairs = list(zip(real.flatten(), fake.flatten(), strict=True))
    singles = [adversarial_generator(f.view(1), r.view(1), kind=kind).item() for r, f in pairs]
    assert adversarial_generator(fake, real, kind=kind).item() == pytest.approx(sum(singles) / len(singles), rel=1e-5)
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
    assert torch.autograd.gradcheck(lambda f: adversarial_generator(f, real, kind=kind), fake)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_logits_are_evaluated_in_float32(kind):
    real, fake = logits(1.1, -300.0).half(), logits(0.7, 300.0).half()  # 300 squared overflows float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = adversarial_discriminator(real, fake, kind=kind), adversarial_generator(fake, real, kind=kind)
    expected = (
        adversarial_discriminator(real.float(), fake.float(), kind=kind),
        adversarial_generator(fake.float(), real.float(), kind=kind),
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
        "relativistic": 0.0,
    }


def test_published_values_of_hinge_and_relativistic_pairs():
    real, fake = logits(2, 0.5), logits(-1.5, 0.3)
    assert adversarial_discriminator(real, fake, kind="hinge").item() == pytest.approx(0.9)
    assert adversarial_generator(fake, kind="hinge").item() == pytest.approx(0.6)
    assert adversarial_discriminator(real, fake, kind="relativistic").item() == pytest.approx(0.3139446, abs=1e-6)
    assert adversarial_generator(fake, real, kind="relativistic").item() == pytest.approx(2.1639446, abs=1e-6)


def test_pairs_are_of_the_same_index():
    real, fake = logits(2, 0.5), logits(-1.5, 0.3)
    swapped = adversarial_discriminator(real, fake.flip(0), kind="relativistic")
    assert swapped.item() != pytest.approx(0.3139446, abs=1e-3)
    real_scores, fake_scores = ADVERSARIAL["relativistic"].compared(real, fake)
    assert real_scores.tolist() == pytest.approx([3.5, 0.2])
    assert fake_scores.tolist() == pytest.approx([-3.5, -0.2])


@pytest.mark.parametrize("kind", ["least_squares", "hinge", "logistic"])
def test_by_position_hidden_patches_are_fake_and_visible_ones_real(kind):
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(2, 2, 2, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 0]]).bool()
    loss, hidden = ADVERSARIAL[kind], mask.view(2, 2, 2)
    discriminator = loss.on_real(real).mean() + torch.where(hidden, loss.on_fake(fake), loss.on_real(fake)).mean()
    generator_loss = torch.stack([loss.on_generated(f[h]).mean() for f, h in zip(fake, hidden, strict=True)]).mean()
    options = {"kind": kind, "targets": "position"}
    assert adversarial_discriminator(real, fake, mask, (2, 2), **options).item() == pytest.approx(discriminator.item())
    made = adversarial_generator(fake, None, mask, (2, 2), **options)
    assert made.item() == pytest.approx(generator_loss.item())


def test_scores_by_position_are_of_what_is_hidden():
    mask = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 0]]).bool()
    fake = torch.tensor([[[-1.0, 9.0], [9.0, -3.0]], [[-1.0, -2.0], [-3.0, 9.0]]])
    hidden = hidden_share(mask, (2, 2), fake)
    real_scores, fake_scores = ADVERSARIAL["least_squares"].image_scores(fake + 1, fake, hidden)
    assert fake_scores.tolist() == [-2.0, -2.0]
    assert real_scores.tolist() == [4.5, 1.75]
    whole = ADVERSARIAL["relativistic"].image_scores(fake + 1, fake)
    assert [scores.tolist() for scores in whole] == [[1.0, 1.0], [-1.0, -1.0]]


def test_a_position_of_several_patches_is_fake_as_far_as_it_is_hidden():
    mask = torch.tensor([[1, 0, 0, 0]]).bool()  # one logit for 2 x 2 patches, of which a quarter is hidden
    real, fake = torch.zeros(1, 1, 1), torch.full((1, 1, 1), 2.0)
    loss = adversarial_discriminator(real, fake, mask, (2, 2), targets="position")
    assert loss.item() == pytest.approx(0.5 + 0.25 * 2.0 + 0.75 * 0.5)


def test_with_nothing_hidden_the_generator_has_nothing_to_answer_for():
    fake = torch.ones(1, 2, 2, requires_grad=True)
    loss = adversarial_generator(fake, None, torch.zeros(1, 4), (2, 2), targets="position")
    loss.backward()
    assert loss.item() == 0
    assert fake.grad.abs().sum() == 0


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="choose from: least_squares, hinge, logistic"):
        adversarial_generator(logits(0), kind="wasserstein")
    with pytest.raises(ValueError, match="choose from: both, real_only"):
        adversarial_discriminator(logits(0), logits(0), half="none")
    with pytest.raises(ValueError, match="belongs to kind least_squares"):
        adversarial_discriminator(logits(0), logits(0), kind="hinge", half="real_only")
    with pytest.raises(ValueError, match="compares logits in pairs"):
        adversarial_generator(logits(0), kind="relativistic")
    with pytest.raises(ValueError, match="needs a map of logits"):
        adversarial_generator(logits(0), None, torch.ones(1, 4), (2, 2), targets="position")
    with pytest.raises(ValueError, match="goes with whole labels"):
        adversarial_discriminator(logits(0), logits(0), kind="relativistic", targets="position")
    with pytest.raises(ValueError, match="choose from: image, position"):
        adversarial_generator(logits(0), targets="patch")
