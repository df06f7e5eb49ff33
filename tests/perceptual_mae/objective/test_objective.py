"""The objective is a table: weights, phases, and one line to add a term."""

import pytest
import torch

from conftest import debug_config, debug_trainer, random_batches, term_inputs
from perceptual_mae.losses import FEATURES, TERMS, Term
from perceptual_mae.objective.objective import WeightedTerm
from perceptual_mae.schedules import TrainingProgress


def charbonnier(fake, real, *, epsilon: float = 1e-3):
    return ((fake[0] - real[0]).square() + epsilon**2).sqrt().mean()


@pytest.fixture
def with_charbonnier(monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's two edits: a function, and one line of the table."""
    monkeypatch.setitem(TERMS, "charbonnier", Term(charbonnier, reads=("fake", "real")))


@pytest.mark.usefixtures("with_charbonnier")
def test_a_new_term_is_one_function_and_one_line() -> None:
    trainer = debug_trainer("mse", "losses.charbonnier={weight: 0.5, epsilon: 0.01, when: even_epochs}")
    assert "weighted/charbonnier" not in trainer.step(random_batches(2), TrainingProgress(1, 1, 0.1))
    scalars = trainer.step(random_batches(2), TrainingProgress(2, 9, 0.6))
    torch.testing.assert_close(scalars["weighted/charbonnier"], 0.5 * scalars["raw/charbonnier"])


@pytest.mark.parametrize("name", TERMS)
def test_a_term_reads_fields_that_exist(name: str) -> None:
    trainer = debug_trainer("ls_gan_p")
    inputs, _ = term_inputs(trainer, TrainingProgress(2, 1, 0.1))
    for field in TERMS[name].reads:
        assert (inputs.features(field) if field in FEATURES else getattr(inputs, field)) is not None


@pytest.mark.parametrize("name", TERMS)
def test_every_term_reaches_the_generators_ends_with_a_finite_gradient(name: str) -> None:
    trainer = debug_trainer("ls_gan_p", "generator.skips=true", "generator.rgb_heads=true")
    inputs, _ = term_inputs(trainer, TrainingProgress(2, 1, 0.1))
    value = WeightedTerm(TERMS[name])(inputs)
    assert value.ndim == 0
    end = inputs.latent if TERMS[name].acts_through_decoder else inputs.tokens
    (gradient,) = torch.autograd.grad(value, end)
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().sum()) > 0


def test_a_ramp_moves_the_weight_with_the_run() -> None:
    trainer = debug_trainer(
        "ls_gan_p", "losses.l1.weight={from: 0.0, to: 1.0, over: 0.5}", "losses.adversarial.weight=0.01"
    )
    lines = trainer.objective
    assert "l1" not in lines.active(TrainingProgress(1, 0, 0.0))  # weight 0: not computed
    for progress, weight in ((0.25, 0.5), (0.5, 1.0), (0.9, 1.0)):
        scalars = trainer.step(random_batches(2), TrainingProgress(1, 1, progress))
        torch.testing.assert_close(scalars["weighted/l1"], weight * scalars["raw/l1"])


SHIPPED = {"l1", "mse", "high_frequency", "ms_ssim", "feature_matching", "style", "adversarial", "uniformity"}


def test_terms_say_whether_they_read_features_logits_or_images() -> None:
    terms = {name: TERMS[name] for name in SHIPPED}  # a new term may be of any kind
    assert {name for name, term in terms.items() if term.reads_features} == {"feature_matching", "style"}
    assert {name for name, term in terms.items() if term.reads_logits} == {"adversarial"}
    assert {name for name, term in terms.items() if not term.compares_images} == {"l1", "mse", "uniformity"}
    assert {name for name, term in terms.items() if not term.acts_through_decoder} == {"uniformity"}


def test_a_dead_head_is_refused() -> None:
    with pytest.raises(ValueError, match="rgb_heads"):
        debug_config("ms_ssim_l1", "generator.rgb_heads=true")
    with pytest.raises(ValueError, match="rgb_heads"):
        debug_config("ls_gan_p", "generator.rgb_heads=true", "losses.l1.low_levels=0")
