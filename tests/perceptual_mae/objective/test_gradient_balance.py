"""The adversarial weight is a share of L1's gradient at the decoder's input."""

from types import SimpleNamespace

import pytest
import torch

from conftest import debug_trainer, random_batches, slow, term_inputs
from perceptual_mae.objective.gradient_balance import GradientBalance, Norms
from perceptual_mae.schedules import Balanced, TrainingProgress


def balanced(share: float = 0.2, name: str = "adversarial", **options: object) -> GradientBalance:
    """The balance of one term."""
    return GradientBalance({name: Balanced(balanced=share, **options)}, telemetry_every=1000)


def add(balance: GradientBalance, **gradients: torch.Tensor) -> None:
    """Measure one micro-batch of linear losses that have these gradients at the decoder's input."""
    latent = torch.zeros_like(next(iter(gradients.values())), requires_grad=True)
    losses = {name: (gradient * latent).sum() for name, gradient in gradients.items()}
    balance.measure(losses, SimpleNamespace(prediction=(latent * 1,), latent=latent), {}, step=8)


def measured(balance: GradientBalance, **gradients: torch.Tensor) -> Norms:
    """Close a measurement of one micro-batch with these gradients at the decoder's input."""
    add(balance, **gradients)
    return balance.finish(lambda squares: squares)


def test_the_coefficient_is_the_share_of_the_measured_norms() -> None:
    for cap, expected in ((1.0, 0.2 * 5 / 200**0.5), (0.01, 0.01)):
        balance = balanced(cap=cap)
        gradients = {"l1": torch.tensor([3.0, 4.0]), "adversarial": torch.tensor([10.0, 10.0])}
        balance.follow(measured(balance, **gradients), ["adversarial"])
        assert float(balance.coefficient("adversarial")) == pytest.approx(expected, rel=1e-6)


def test_l1s_own_weight_counts_in_the_anchor() -> None:
    balance = balanced(cap=10.0)
    balance.follow(measured(balance, l1=torch.tensor([3.0]), adversarial=torch.tensor([6.0])), ["adversarial"])
    once, twice = (float(balance.coefficient("adversarial", weight)) for weight in (1.0, 2.0))
    assert (once, twice) == pytest.approx((0.1, 0.2))


def test_a_share_of_three_quarters_of_norms_3_and_6_is_vqgans_weight() -> None:
    balance = balanced(0.75, anchor="reconstruction", every=1, cap=1e4)
    norms = {"reconstruction": torch.tensor([3.0]), "adversarial": torch.tensor([6.0])}
    balance.follow(measured(balance, **norms), ["adversarial"])
    assert float(balance.coefficient("adversarial")) == pytest.approx(0.374994, rel=2e-5)  # theirs adds 1e-4 below


def test_norms_are_smoothed_over_measurements() -> None:
    balance = balanced()
    for slope in (1.0, 2.0, 4.0):
        norms = measured(balance, l1=torch.tensor([slope]), adversarial=torch.tensor([1.0]))
        balance.follow(norms, ["adversarial"])
    assert float(balance.norms["l1"]) == pytest.approx(0.8 * (0.8 * 1 + 0.2 * 2) + 0.2 * 4)


def test_the_norm_is_that_of_the_whole_batch_however_it_is_cut() -> None:
    whole, parts = balanced(), balanced()
    gradients = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))  # of each image's own loss
    norm = measured(whole, l1=gradients / 4, adversarial=gradients / 4)["l1"]["decoder"]
    add(parts, l1=gradients[:2] / 2, adversarial=gradients[:2] / 2)  # of the means of two micro-batches
    rest = measured(parts, l1=gradients[2:] / 2, adversarial=gradients[2:] / 2)["l1"]["decoder"]
    torch.testing.assert_close(rest, norm)
    torch.testing.assert_close(norm, (gradients / 4).norm())


@pytest.mark.parametrize(("at", "place"), [("decoder", "decoder_weights"), ("last_layer", "last_layer")])
def test_at_weights_the_norm_is_that_of_the_batchs_gradient_in_which_images_may_cancel(at: str, place: str) -> None:
    weight = torch.ones(2, requires_grad=True)
    images = torch.tensor([[1.0, 2.0], [-1.0, 2.0]])  # gradients of each image's loss at the weight
    for cuts in ([images], [images[:1], images[1:]]):
        balance = balanced(at=at)
        for cut in cuts:
            losses = {"l1": (cut @ weight).mean(), "adversarial": (3 * cut @ weight).mean()}
            reconstruction = SimpleNamespace(prediction=(weight * 1,), latent=weight * 1)
            balance.measure(losses, reconstruction, {place: (weight,)}, step=8)
        norms = balance.finish(lambda sums: sums)
        assert {name: float(each[place]) for name, each in norms.items()} == pytest.approx({"l1": 2, "adversarial": 6})
        balance.follow(norms, ["adversarial"])
        assert float(balance.coefficient("adversarial")) == pytest.approx(0.2 / 3)
        assert set(balance.state_dict()) == {f"norm.l1@{place}", f"norm.adversarial@{place}"}


def test_a_balanced_term_is_off_until_it_is_measured() -> None:
    assert balanced().coefficient("adversarial") == 0.0


def test_a_term_is_measured_in_its_own_interval() -> None:
    balance = GradientBalance({"style": Balanced(balanced=1, every=3), "adversarial": Balanced(balanced=1, every=2)})
    terms = ["l1", "style", "adversarial"]
    assert [balance.balanced_terms(terms, step) for step in (0, 2, 3, 5)] == [
        ["style", "adversarial"],
        ["adversarial"],
        ["style"],
        [],
    ]
    assert [balance.is_due(step) for step in (3, 5, 8)] == [True, False, True]


def test_a_term_that_does_not_reach_the_latent_measures_zero() -> None:
    balance, tokens = balanced(name="uniformity"), torch.ones(2, requires_grad=True)
    latent = torch.ones(2, requires_grad=True)
    losses = {"l1": latent.sum(), "uniformity": tokens.sum()}
    balance.measure(losses, SimpleNamespace(prediction=(latent * 1,), latent=latent), {}, step=8)
    norms = balance.finish(lambda squares: squares)
    assert float(norms["uniformity"]["decoder"]) == 0
    assert float(norms["l1"]["decoder"]) == pytest.approx(2**0.5)


def test_a_measurement_touches_no_parameters_gradient_and_leaves_the_graph() -> None:
    weight = torch.ones(3, requires_grad=True)
    latent = weight * 2
    losses = {"l1": (latent**2).sum(), "adversarial": latent.sum()}
    reconstruction = SimpleNamespace(prediction=(latent,), latent=latent)
    balanced(at="last_layer").measure(losses, reconstruction, {"last_layer": (weight,)}, step=8)
    assert weight.grad is None
    losses["l1"].backward()
    assert weight.grad.tolist() == [8.0] * 3


def test_an_overflow_does_not_stay() -> None:
    balance = balanced()
    for slope in (1.0, float("inf"), 1.0):
        norms = {name: {"decoder": torch.tensor(slope)} for name in ("l1", "adversarial")}
        balance.follow(norms, ["adversarial"])
    assert float(balance.norms["l1"]) == pytest.approx(1.0)


@pytest.mark.parametrize("order", ["lean", slow("sequential")])
@pytest.mark.parametrize("anchor", ["l1", "reconstruction"])
@pytest.mark.parametrize("at", ["decoder_input", "decoder", "last_layer"])
def test_the_trained_ratio_is_the_one_asked_for(at: str, anchor: str, order: str) -> None:
    weight = f"{{balanced: 0.3, cap: 1.0e+6, at: {at}, anchor: {anchor}}}"
    trainer = debug_trainer("ls_gan_p", f"losses.adversarial.weight={weight}", f"training.order={order}")
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
    ends = {"decoder": [inputs.latent]} | {str(level.shape[-1]): [level] for level in inputs.prediction}
    ends |= trainer.unwrapped_generator.decoder.balanced_weights

    def gradient(name: str, place: str) -> torch.Tensor:
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        parts = torch.autograd.grad(losses.raw[name], ends[place], **options)
        return torch.cat([part.flatten() for part in parts])

    scalars = trainer.step(random_batches(4), progress)
    terms = {"l1", "feature_matching", "style", "adversarial"}
    for place in ends:
        norms = {name: scalars[f"gradient/{place}/{name}"] for name in terms}
        for name in ("l1", "style"):
            weight = trainer.objective.lines[name].weight
            torch.testing.assert_close(norms[name], weight * gradient(name, place).norm(), rtol=1e-4, atol=1e-9)
        shares = {name: scalars[f"gradient_share/{place}/{name}"] for name in terms}
        assert sum(map(float, shares.values())) == pytest.approx(1.0)
        assert float(shares["style"] / shares["l1"]) == pytest.approx(float(norms["style"] / norms["l1"]), rel=1e-4)
    assert {name.split("/")[1] for name in scalars if name.startswith("gradient_share/")} == set(ends)


def test_a_single_term_has_nothing_to_share() -> None:
    scalars = debug_trainer("mse").step(random_batches(4), TrainingProgress(1, 0, 0.0))
    assert not [name for name in scalars if name.startswith("gradient")]


def test_state_survives_a_round_trip() -> None:
    balance, other = balanced(), balanced()
    balance.norms = {"l1": torch.tensor(1.5), "adversarial": torch.tensor(0.25)}
    other.load_state_dict(balance.state_dict())
    assert other.norms == balance.norms
