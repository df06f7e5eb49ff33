"""How far a term's gradient reaches, and an encoder that does not learn."""

import pytest
import torch

from conftest import debug_trainer, random_batches, slow
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.trainer import Trainer

LATER = TrainingProgress(2, 9, 0.5)
SKIPS = "generator.skips=true"
WEIGHT = "losses.adversarial.weight=0.7"


def gradients(trainer: Trainer, accumulation: int = 1) -> dict[str, torch.Tensor]:
    """The generator's gradients at the update of one step, by name."""
    named, kept = dict(trainer.unwrapped_generator.named_parameters()), dict[str, torch.Tensor]()
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: kept.update({name: each.grad.clone() for name, each in named.items() if each.grad is not None})
    )
    trainer.step(random_batches(8, accumulation), LATER)
    return kept


def trained(*overrides: str, accumulation: int = 1) -> dict[str, torch.Tensor]:
    return gradients(debug_trainer("ls_gan", SKIPS, *overrides, dtype=torch.float64), accumulation)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("order", ["lean", "sequential"])
def test_a_term_that_reaches_the_decoder_leaves_the_encoder_the_gradient_of_the_others(
    order: str, accumulation: int
) -> None:
    frozen = "optimizer.discriminator.lr=1e-30"
    options = {"accumulation": accumulation}
    everywhere, near, off = (
        trained(frozen, f"training.order={order}", *overrides, **options)
        for overrides in ([WEIGHT], [WEIGHT, "losses.adversarial.reach=decoder"], ["losses.adversarial.weight=1e-300"])
    )
    assert near.keys() == everywhere.keys()
    for name, gradient in near.items():
        expected = off[name] if name.startswith("encoder.") else everywhere[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-14, msg=name)
    assert not torch.allclose(everywhere["encoder.norm.weight"], near["encoder.norm.weight"])


def test_every_term_may_be_kept_from_the_encoder() -> None:
    reaches = [f"losses.{name}.reach=decoder" for name in ("adversarial", "feature_matching", "style")]
    trainers = [debug_trainer(*each, dtype=torch.float64) for each in (("ls_gan_p", SKIPS, *reaches), ("l1", SKIPS))]
    near, l1 = map(gradients, trainers)
    for name in (name for name in near if name.startswith("encoder.")):
        torch.testing.assert_close(near[name], l1[name], rtol=1e-9, atol=1e-14, msg=name)


@pytest.mark.parametrize("order", ["lean", slow("sequential")])
@pytest.mark.parametrize("method", ["mse", "ls_gan_p", slow("stylegan2_ada_p")])
def test_a_frozen_encoder_keeps_its_weights_bit_for_bit_and_the_decoder_learns(method: str, order: str) -> None:
    overrides = ["generator.freeze_encoder=true", "training.ema_kimg=0.1", f"training.order={order}"]
    trainer = debug_trainer(method, *overrides)
    before = {name: each.clone() for name, each in trainer.unwrapped_generator.state_dict().items()}
    for step in range(4):
        trainer.step(random_batches(4, seed=step), TrainingProgress(1 + step // 2, step, step / 4))
    for network in (trainer.unwrapped_generator, trainer.ema.module):
        for name, tensor in network.state_dict().items():
            is_same = torch.equal(tensor, before[name])
            assert is_same == (name.startswith("encoder.") or name.endswith(("pos_embed", "mean", "std"))), name


def test_the_optimiser_of_a_frozen_encoder_holds_the_decoders_weights_alone() -> None:
    trainer = debug_trainer("mse", "generator.freeze_encoder=true")
    held = {id(each) for group in trainer.optimizer.param_groups for each in group["params"]}
    assert held == {id(each) for each in trainer.unwrapped_generator.decoder.parameters()}
