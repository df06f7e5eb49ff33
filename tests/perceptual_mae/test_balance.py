"""The adversarial weight is a share of L1's gradient at the decoder's input."""

import pytest
import torch

from conftest import debug_trainer, random_batches
from perceptual_mae.balance import Balance
from perceptual_mae.schedule import Moment


def test_the_coefficient_is_the_share_of_the_measured_norms() -> None:
    latent = torch.tensor([3.0, 4.0], requires_grad=True)
    balance = Balance()
    balance.add({"l1": (latent * torch.tensor([3.0, 4.0])).sum(), "adversarial": (latent * 10).sum()}, latent)
    balance.finish(lambda squares: squares)
    expected = 0.2 * 5 / 200**0.5
    assert float(balance.coefficient("adversarial", 0.2, 1.0)) == pytest.approx(expected, rel=1e-6)
    assert float(balance.coefficient("adversarial", 0.2, 0.01)) == pytest.approx(0.01)


def test_norms_are_smoothed_over_measurements() -> None:
    latent = torch.zeros(1, requires_grad=True)
    balance = Balance(decay=0.8)
    for slope in (1.0, 2.0, 4.0):
        balance.add({"l1": (latent * slope).sum()}, latent)
        balance.finish(lambda squares: squares)
    assert float(balance.norms["l1"]) == pytest.approx(0.8 * (0.8 * 1 + 0.2 * 2) + 0.2 * 4)


def test_a_balanced_term_is_off_until_it_is_measured() -> None:
    assert Balance().coefficient("adversarial", 0.2, 1.0) == 0.0


def test_a_term_that_does_not_reach_the_latent_measures_zero() -> None:
    latent = torch.ones(2, requires_grad=True)
    other = torch.ones(2, requires_grad=True)
    balance = Balance()
    balance.add({"l1": latent.sum(), "adversarial": other.sum()}, latent)
    balance.finish(lambda squares: squares)
    assert float(balance.norms["adversarial"]) == 0.0
    assert float(balance.coefficient("adversarial", 0.2, 1.0)) == 1.0


def test_the_trained_share_is_the_one_asked_for() -> None:
    trainer = debug_trainer("ls_gan_p", "losses.adversarial.weight={balanced: 0.3, cap: 100.0}")
    trainer.step(random_batches(8), Moment(1, 0, 0.0))
    scalars = trainer.step(random_batches(8), Moment(1, 8, 0.1))
    assert float(scalars["gradient_share/adversarial"]) == pytest.approx(0.3, rel=1e-5)


def test_measuring_leaves_the_gradients_of_the_step_alone() -> None:
    gradients = []
    for step in (8, 9):  # measured, not measured
        trainer = debug_trainer("ls_gan_p")
        trainer.objective.balance.norms = {"l1": torch.tensor(1.0), "adversarial": torch.tensor(2.0)}
        view = trainer.view(random_batches(4)[0], Moment(2, step, 0.5))
        seen = trainer.compare(trainer.generator(view.images, view.mask), view, Moment(2, 1, 0.1))
        losses = trainer.objective(seen, Moment(2, step, 0.5))
        if trainer.objective.is_measured(step):
            trainer.objective.measure(losses, seen)
        losses.total.backward()
        gradients.append([parameter.grad for parameter in trainer.bare_generator.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_state_survives_a_round_trip() -> None:
    balance, other = Balance(), Balance()
    balance.norms = {"l1": torch.tensor(1.5), "adversarial": torch.tensor(0.25)}
    other.load_state_dict(balance.state_dict())
    assert other.norms == balance.norms
