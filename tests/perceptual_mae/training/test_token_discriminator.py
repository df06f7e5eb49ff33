"""A discriminator on the generator's own encoder, from its configuration to its steps and checkpoints."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import debug_config, debug_trainer, generator_of, random_batches
from discriminators.token import Token
from perceptual_mae.cli.pretrain import describe
from perceptual_mae.config.build import build_discriminator
from perceptual_mae.errors import UserError
from perceptual_mae.images import composite, mask_image
from perceptual_mae.losses.adversarial import adversarial_generator
from perceptual_mae.report.cost import parameters
from perceptual_mae.run import checkpoint
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training import trainer_state
from perceptual_mae.training.trainer import Trainer

HEAD = 2 * 32 + (32 * 256 + 256) + 256 + 1
"""LayerNorm, linear, linear: of tokens of width 32."""

both_orders = pytest.mark.parametrize("order", ["lean", "sequential"])


def token_of(trainer: Trainer) -> Token:
    discriminator = trainer.unwrapped_discriminator
    assert isinstance(discriminator, Token)
    return discriminator


def copied(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def test_it_is_built_on_the_encoder_of_the_runs_generator() -> None:
    trainer = debug_trainer("gan_mae")
    assert token_of(trainer).encoder is trainer.unwrapped_generator.encoder
    assert token_of(trainer).grid == trainer.unwrapped_generator.grid


def test_the_head_alone_is_counted_and_kept() -> None:
    config = debug_config("gan_mae")
    assert parameters(config)[1] == pytest.approx(HEAD / 1e6)
    assert f"discriminator: {HEAD:,} parameters" in describe(config, Path("runs/a"))


def test_the_same_seed_builds_the_same_head_whatever_the_encoder() -> None:
    config, other = debug_config("gan_mae"), debug_config("gan_mae", "training.seed=1")
    encoders = [generator_of(each).encoder for each in (config, other)]
    heads = [build_discriminator(config.discriminator, config.data.image, 0, encoder) for encoder in encoders]
    first, second = (copied(head) for head in heads if head is not None)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("discriminator.hidden=0", "a hidden layer of width 1 or more, not 0"),
        ("discriminator.encoder=vit", "discriminator.encoder: unknown option of token"),
        ("discriminator.fake=raw", "set discriminator.fake=composite"),
        ("generator.width=30", "generator"),
    ],
)
def test_a_mistake_is_a_line_that_names_its_key(override: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        debug_config("gan_mae", override)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value).strip()


def test_the_adversarial_term_reaches_the_encoder_through_the_images_alone() -> None:
    """Its gradient is the one of a discriminator on a frozen copy of the encoder, made of ordinary parts."""
    trainer = debug_trainer("gan_mae", dtype=torch.float64)
    (batch,) = trainer.prepare(random_batches(4), TrainingProgress(1, 0, 0.0))
    generator, discriminator = trainer.unwrapped_generator, token_of(trainer)
    reconstruction = generator(batch.images, batch.mask)
    logits = discriminator(trainer.fake_images(batch, reconstruction)).logits
    assert logits.shape == (4, *generator.grid)

    def gradients(logits: Tensor) -> list[Tensor]:
        loss = adversarial_generator(logits, None, batch.mask, generator.grid, kind="logistic", targets="position")
        return list(torch.autograd.grad(loss, trainer.generator_parameters, retain_graph=True))

    def logits_of(encoder: torch.nn.Module) -> Tensor:
        hidden = mask_image(batch.mask, generator.grid, (32, 32)).to(batch.images)
        fake = composite(batch.images, reconstruction.pyramid[0], hidden)
        return discriminator.out(discriminator.hidden(encoder(fake)[:, 1:])).view_as(logits)

    own = gradients(logits)
    frozen = copy.deepcopy(generator.encoder).requires_grad_(False)
    for gradient, expected in zip(own, gradients(logits_of(frozen)), strict=True):
        torch.testing.assert_close(gradient, expected)
    uncut = gradients(logits_of(generator.encoder))
    is_encoders = [name.startswith("encoder.") for name, each in generator.named_parameters() if each.requires_grad]
    differs = [not torch.allclose(*pair) for pair in zip(own, uncut, strict=True)]
    assert differs == is_encoders  # the decoder has its gradient through images anyway


def test_the_loss_of_real_and_fake_is_a_loss_of_the_head() -> None:
    trainer = debug_trainer("gan_mae")
    (batch,) = trainer.prepare(random_batches(4), TrainingProgress(1, 0, 0.0))
    discriminator = token_of(trainer)
    with torch.no_grad():
        reconstruction = trainer.unwrapped_generator(batch.images, batch.mask)
    shown = (trainer.adversary.input.real(batch.images), trainer.fake_images(batch, reconstruction))
    real, fake = (discriminator(levels).logits for levels in shown)
    loss = trainer.adversary.loss(real, fake, batch.mask, trainer.unwrapped_generator.grid)
    loss.backward()
    assert all(each.grad is None for each in trainer.unwrapped_generator.parameters())
    assert all(each.grad.abs().max() > 0 for each in discriminator.parameters())


@both_orders
def test_with_a_frozen_encoder_head_and_decoder_learn(order: str) -> None:
    trainer = debug_trainer("gan_mae", "generator.freeze_encoder=true", f"training.order={order}")
    networks = (trainer.unwrapped_generator.encoder, trainer.unwrapped_generator.decoder, token_of(trainer))
    before = [copied(network) for network in networks]
    for step in range(2):
        scalars = trainer.step(random_batches(4, seed=step), TrainingProgress(1, 3 + step, 0.5))
        assert all(torch.isfinite(value) for value in scalars.values())
    encoder, decoder, head = (
        [name for name, value in network.named_parameters() if torch.equal(value, old[name])]
        for network, old in zip(networks, before, strict=True)
    )
    assert encoder == [name for name, _ in networks[0].named_parameters()]
    assert decoder == head == []


@pytest.mark.slow
@both_orders
def test_a_run_goes_on_from_its_checkpoint_as_if_unbroken(order: str, tmp_path: Path) -> None:
    words = ("gan_mae", f"training.order={order}", "training.ema_kimg=0.05", "penalties={r1: {every: 1}}")
    unbroken, resumed = debug_trainer(*words), debug_trainer(*words, "training.seed=1")
    for step in range(2):
        unbroken.step(random_batches(4, seed=step), TrainingProgress(2, 9 + step, 0.6))
    tensors, metadata = trainer_state.state_dict(unbroken, unbroken.accelerator)
    assert sum(value.numel() for value in tensors["discriminator"].values()) == HEAD
    checkpoint.save(tmp_path, 2, tensors, {"step": 2, **metadata})
    trainer_state.load_state_dict(resumed, resumed.accelerator, tmp_path / "step_00000002")
    resumed.draw_masks = unbroken.draw_masks  # of the seed
    outcomes = [each.step(random_batches(4, seed=3), TrainingProgress(2, 11, 0.7)) for each in (unbroken, resumed)]
    assert all(torch.equal(value, outcomes[1][name]) for name, value in outcomes[0].items())
    for name, value in copied(token_of(unbroken)).items():
        assert torch.equal(value, copied(token_of(resumed))[name])


def test_a_snapshot_keeps_the_head_on_the_encoder_that_learns() -> None:
    trainer = debug_trainer("gan_mae", "losses.feature_matching.network={kind: snapshot, every: 2}")
    (snapshot,) = trainer.networks.copies.values()
    trainer.step(random_batches(4), TrainingProgress(1, 0, 0.0))
    head = copied(snapshot)
    for step in range(2):
        trainer.step(random_batches(4, seed=step), TrainingProgress(2, 9 + step, 0.6))
    assert snapshot.copy.encoder is trainer.unwrapped_generator.encoder
    assert all(torch.equal(value, copied(snapshot)[name]) for name, value in head.items())
    assert any(not torch.equal(value, head[f"copy.{name}"]) for name, value in copied(token_of(trainer)).items())
