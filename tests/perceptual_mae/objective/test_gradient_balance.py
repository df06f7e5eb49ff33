"""The adversarial weight is a share of L1's gradient at the decoder's input."""

from types import SimpleNamespace

import pytest
import torch

from conftest import debug_trainer, random_batches, term_inputs
from perceptual_mae.objective.gradient_balance import GradientBalance
from perceptual_mae.schedules import TrainingProgress


def add(balance: GradientBalance, **gradients: torch.Tensor) -> None:
    """Measure one micro-batch of linear losses that have these gradients at the decoder's input."""
    balance.balanced = tuple(name for name in gradients if name != "l1") or ("none",)
    latent = torch.zeros_like(next(iter(gradients.values())), requires_grad=True)
    losses = {name: (gradient * latent).sum() for name, gradient in gradients.items()}
    balance.measure(losses, SimpleNamespace(prediction=(latent * 1,), latent=latent), step=999)


def measured(balance: GradientBalance, **gradients: torch.Tensor) -> dict[str, torch.Tensor]:
    """Close a measurement of one micro-batch with these gradients at the decoder's input."""
    add(balance, **gradients)
    return {name: places["decoder"] for name, places in balance.finish(lambda squares: squares).items()}


def test_the_coefficient_is_the_share_of_the_measured_norms() -> None:
    balance = GradientBalance()
    balance.follow(measured(balance, l1=torch.tensor([3.0, 4.0]), adversarial=torch.tensor([10.0, 10.0])))
    expected = 0.2 * 5 / 200**0.5
    assert float(balance.coefficient("adversarial", 0.2, 1.0)) == pytest.approx(expected, rel=1e-6)
    assert float(balance.coefficient("adversarial", 0.2, 0.01)) == pytest.approx(0.01)


def test_norms_are_smoothed_over_measurements() -> None:
    balance = GradientBalance()
    for slope in (1.0, 2.0, 4.0):
        balance.follow(measured(balance, l1=torch.tensor([slope])))
    assert float(balance.norms["l1"]) == pytest.approx(0.8 * (0.8 * 1 + 0.2 * 2) + 0.2 * 4)


def test_the_norm_is_that_of_the_whole_batch_however_it_is_cut() -> None:
    whole, parts = GradientBalance(), GradientBalance()
    gradients = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))  # of each image's own loss
    norm = measured(whole, l1=gradients / 4)["l1"]
    add(parts, l1=gradients[:2] / 2)  # of the means of two micro-batches
    torch.testing.assert_close(measured(parts, l1=gradients[2:] / 2)["l1"], norm)
    torch.testing.assert_close(norm, (gradients / 4).norm())


def test_a_balanced_term_is_off_until_it_is_measured() -> None:
    assert GradientBalance().coefficient("adversarial", 0.2, 1.0) == 0.0


def test_a_term_that_does_not_reach_the_latent_measures_zero() -> None:
    balance, tokens = GradientBalance(["uniformity"]), torch.ones(2, requires_grad=True)
    latent = torch.ones(2, requires_grad=True)
    losses = {"l1": latent.sum(), "uniformity": tokens.sum()}
    balance.measure(losses, SimpleNamespace(prediction=(latent * 1,), latent=latent), step=999)
    norms = balance.finish(lambda squares: squares)
    assert float(norms["uniformity"]["decoder"]) == 0
    assert float(norms["l1"]["decoder"]) == pytest.approx(2**0.5)


def test_a_measurement_touches_no_parameters_gradient_and_leaves_the_graph() -> None:
    weight = torch.ones(3, requires_grad=True)
    latent = weight * 2
    loss = (latent**2).sum()
    GradientBalance(["other"]).measure({"l1": loss}, SimpleNamespace(prediction=(latent,), latent=latent), step=999)
    assert weight.grad is None
    loss.backward()
    assert weight.grad.tolist() == [8.0] * 3


def test_an_overflow_does_not_stay() -> None:
    balance = GradientBalance()
    for slope in (1.0, float("inf"), 1.0):
        balance.follow({"l1": torch.tensor(slope)})
    assert float(balance.norms["l1"]) == pytest.approx(1.0)


def test_the_trained_ratio_is_the_one_asked_for() -> None:
    trainer = debug_trainer("ls_gan_p", "losses.adversarial.weight={balanced: 0.3, cap: 100.0}")
    trainer.step(random_batches(8), TrainingProgress(1, 0, 0.0))
    scalars = trainer.step(random_batches(8), TrainingProgress(1, 8, 0.1))
    assert float(scalars["gradient_ratio/adversarial"]) == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize("order", ["lean", "sequential"])
@pytest.mark.parametrize("method", ["ls_gan_p", "msg_gan_p"])
@pytest.mark.parametrize("step", [8, 9], ids=["measured", "not measured"])
def test_the_steps_gradients_are_those_of_the_total(method: str, step: int, order: str) -> None:
    progress, gradients = TrainingProgress(2, step, 0.5), []
    for steps in (True, False):
        frozen = "optimizer.discriminator.lr=1e-30"  # in both orders the generator meets the same discriminator
        trainer = debug_trainer(method, f"training.order={order}", frozen, dtype=torch.float64)
        trainer.objective.balance.norms = {"l1": torch.tensor(1.0), "adversarial": torch.tensor(2.0)}
        named = dict(trainer.unwrapped_generator.named_parameters())
        if steps:
            found: dict[str, torch.Tensor] = {}
            trainer.optimizer.optimizer.register_step_pre_hook(
                lambda *_, found=found, named=named: found.update(
                    {key: each.grad.clone() for key, each in named.items()}
                )
            )
            trainer.step(random_batches(4), progress)
        else:
            inputs, _ = term_inputs(trainer, progress)
            trainer.objective(inputs, progress).total.backward()
            found = {name: value.grad for name, value in named.items()}
        gradients.append(found)
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], rtol=1e-9, atol=1e-14, msg=name)


def test_measuring_all_terms_does_not_change_a_run() -> None:
    trained = []
    for log_every in (1, 1000):
        trainer = debug_trainer("msg_gan_p", f"training.log_every={log_every}")
        for step in (1, 8, 16):
            scalars = trainer.step(random_batches(4), TrainingProgress(2, step, 0.5))
        trained.append(
            (trainer.unwrapped_generator.state_dict(), {name for name in scalars if "gradient_share" in name})
        )
    assert trained[0][1]
    assert not trained[1][1]
    assert all(torch.equal(value, trained[1][0][name]) for name, value in trained[0][0].items())


def test_every_weighted_terms_gradient_is_recorded_at_the_decoders_input_and_at_every_level() -> None:
    trainer = debug_trainer("msg_gan_p", "optimizer.discriminator.lr=1e-30")  # the one that was asked beforehand
    trainer.objective.balance.norms = {"l1": torch.tensor(1.0), "adversarial": torch.tensor(2.0)}
    progress = TrainingProgress(2, 0, 0.5)
    inputs, _ = term_inputs(trainer, progress)
    losses = trainer.objective(inputs, progress)
    ends = {"decoder": inputs.latent}
    ends |= {str(level.shape[-1]): level for level in inputs.prediction}
    pulls = {
        name: torch.autograd.grad(losses.raw[name], tuple(ends.values()), retain_graph=True, allow_unused=True)
        for name in trainer.objective.active(progress)
    }
    scalars = trainer.step(random_batches(4), progress)
    terms = {"l1", "feature_matching", "style", "adversarial"}
    for number, place in enumerate(ends):
        norms = {name: scalars[f"gradient/{place}/{name}"] for name in terms}
        for name in ("l1", "style"):
            weight = trainer.objective.lines[name].weight
            torch.testing.assert_close(norms[name], weight * pulls[name][number].norm(), rtol=1e-4, atol=1e-9)
        shares = {name: scalars[f"gradient_share/{place}/{name}"] for name in terms}
        assert sum(map(float, shares.values())) == pytest.approx(1.0)
        assert float(shares["style"] / shares["l1"]) == pytest.approx(float(norms["style"] / norms["l1"]), rel=1e-4)
    assert {name.split("/")[1] for name in scalars if name.startswith("gradient_share/")} == set(ends)


def test_a_single_term_has_nothing_to_share() -> None:
    scalars = debug_trainer("mse").step(random_batches(4), TrainingProgress(1, 0, 0.0))
    assert not [name for name in scalars if name.startswith("gradient")]


def test_state_survives_a_round_trip() -> None:
    balance, other = GradientBalance(), GradientBalance()
    balance.norms = {"l1": torch.tensor(1.5), "adversarial": torch.tensor(0.25)}
    other.load_state_dict(balance.state_dict())
    assert other.norms == balance.norms
