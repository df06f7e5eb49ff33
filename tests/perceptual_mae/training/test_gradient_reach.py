"""Which tensors a loss moves: every one that the paper wants moved, through the whole step, and no others.

The defect of the authors' code, whose perceptual terms reach no weight in the multi-scale variants, cannot come back
unseen: each discriminator is tried with each generator.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from conftest import FORMS, debug_trainer, random_batches, slow, tiered_forms
from perceptual_mae.images import pyramid
from perceptual_mae.losses import TERMS
from perceptual_mae.objective.objective import WeightedTerm
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.trainer import Trainer

EVEN = TrainingProgress(2, 9, 0.6)
GENERATORS = {"mae": (False, False), "mae_heads": (False, True), "msg_mae": (True, True)}
DISCRIMINATORS = {
    "ls_gan": ("ls_gan_p",),
    "msg_gan": ("msg_gan_p",),
    "stylegan2": ("stylegan2_ada_p", "augment=null"),
    "stylegan2_ada": ("stylegan2_ada_p", "augment.initial_p=0.5"),
}

SLOW_MSG_GAN = pytest.param("msg_gan", marks=pytest.mark.slow)  # another discriminator of whole pyramids, as StyleGAN2
every_discriminator = pytest.mark.parametrize("discriminator", ["ls_gan", SLOW_MSG_GAN, "stylegan2_ada"])
unaugmented = pytest.mark.parametrize("discriminator", ["ls_gan", SLOW_MSG_GAN, "stylegan2"])
both_orders = pytest.mark.parametrize("order", ["lean", "sequential"])


def crossed(discriminator: str, generator: str, order: str) -> Trainer:
    """A trainer of this discriminator with this generator, without penalties."""
    skips, heads = (str(option).lower() for option in GENERATORS[generator])
    levels = "losses.l1.low_levels=0.1"  # what LS-GAN does not read must have an anchor all the same
    return debug_trainer(
        *DISCRIMINATORS[discriminator],
        *(f"generator.skips={skips}", f"generator.rgb_heads={heads}", levels, "penalties=null"),
        f"training.order={order}",
    )


def alone(trainer: Trainer, term: str) -> None:
    """Leave one term of the objective, always on, with weight 1."""
    trainer.objective.lines = {term: WeightedTerm(TERMS[term])}


def moved(network: nn.Module) -> dict[str, Tensor]:
    """Watch a network: afterwards this holds the gradient that came to each tensor, added up; {} before."""
    gradients: dict[str, Tensor] = {}

    def watch(name: str, gradient: Tensor) -> None:
        gradients[name] = gradients.get(name, torch.zeros_like(gradient)) + gradient.detach()

    for name, parameter in network.named_parameters():
        parameter.register_hook(lambda gradient, name=name: watch(name, gradient))
    return gradients


@every_discriminator
@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("order", ["lean", slow("sequential")])
@pytest.mark.parametrize("term", ["feature_matching", "style", "adversarial"])
def test_one_term_alone_reaches_every_tensor_of_the_generator_that_the_discriminator_sees(
    term: str, order: str, generator: str, discriminator: str
) -> None:
    trainer = crossed(discriminator, generator, order)
    alone(trainer, term)
    gradients = moved(trainer.unwrapped_generator)
    trainer.step(random_batches(4), EVEN)
    reached = {name for name, gradient in gradients.items() if gradient.any()}
    names = {name for name, _ in trainer.unwrapped_generator.named_parameters()}
    # LS-GAN looks at the full size alone: the low heads learn from L1.
    unseen = {name for name in names if name.startswith("decoder.heads.")} if discriminator == "ls_gan" else set()
    assert reached == names - unseen
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("form", tiered_forms())
@both_orders
def test_whatever_the_discriminator_is_shown_its_terms_move_the_whole_generator_and_it_is_moved_by_its_loss_alone(
    form: str, order: str
) -> None:
    words = ("generator.skips=true", "generator.rgb_heads=true", "losses.l1.low_levels=0.1", f"training.order={order}")
    trainer = debug_trainer(*FORMS[form], *words)
    trainer.step(random_batches(4), TrainingProgress(1, 0, 0.0))  # measures what balanced weights follow
    del trainer.objective.lines["l1"]
    trainer.unwrapped_discriminator.requires_grad_(True)
    generator, discriminator = (moved(each) for each in (trainer.unwrapped_generator, trainer.unwrapped_discriminator))
    trainer.step(random_batches(4), EVEN)
    names = {name for name, _ in trainer.unwrapped_generator.named_parameters()}
    heads = set() if form in ("discounted", "shared") else {name for name in names if name.startswith("decoder.heads.")}
    assert {name for name, gradient in generator.items() if gradient.any()} == names - heads
    learns = {name for name, _ in trainer.unwrapped_discriminator.named_parameters()}
    cancels = {"head.bias"} if form == "relativistic" else set()  # in the difference of two logits
    assert {name for name, gradient in discriminator.items() if gradient.any()} == learns - cancels
    for name, parameter in trainer.unwrapped_discriminator.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name


@every_discriminator
@pytest.mark.parametrize("term", ["feature_matching", "style"])
def test_a_perceptual_term_reaches_the_encoder_through_the_skips_alone(term: str, discriminator: str) -> None:
    trainer = crossed(discriminator, "msg_mae", "sequential")
    alone(trainer, term)
    encoder = trainer.unwrapped_generator.encoder
    encoder.norm.register_forward_hook(lambda module, inputs, output: output.detach())  # cuts the way to the decoder
    gradients = moved(encoder)
    trainer.step(random_batches(4), EVEN)
    deepest = max(trainer.unwrapped_generator.decoder.taps)
    below = {"cls_token", *(name for name, _ in encoder.named_parameters() if name.startswith("patch_embed"))}
    below |= {
        f"blocks.{block}.{name}" for block in range(deepest) for name, _ in encoder.blocks[block].named_parameters()
    }
    assert {name for name, gradient in gradients.items() if gradient.any()} == below


@every_discriminator
def test_without_the_perceptual_terms_nothing_of_theirs_is_left_in_an_odd_epoch(discriminator: str) -> None:
    """In an odd epoch a step with them leaves the weights that a step without them leaves; in an even one others."""
    for epoch, equal in ((1, True), (2, False)):
        states = []
        for terms in (("l1", "adversarial"), ("l1", "adversarial", "feature_matching", "style")):
            trainer = crossed(discriminator, "msg_mae", "sequential")
            trainer.objective.lines = {name: trainer.objective.lines[name] for name in terms}
            trainer.step(random_batches(4), TrainingProgress(epoch, 9, 0.6))
            states.append(trainer.unwrapped_generator.state_dict())
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items()) == equal


@unaugmented
@both_orders
@pytest.mark.parametrize("generator", ["mae", "msg_mae"])
def test_the_discriminator_is_moved_by_its_own_loss_alone(generator: str, order: str, discriminator: str) -> None:
    trainer = crossed(discriminator, generator, order)
    (batch,) = random_batches(4)
    real, fake = real_and_fake(trainer, batch)
    network = trainer.unwrapped_discriminator
    parameters = dict(network.named_parameters())
    on_real, on_fake = network(real).logits, network(fake).logits
    own = torch.autograd.grad(
        0.5 * (on_real - 1).square().mean() + 0.5 * on_fake.square().mean(), list(parameters.values())
    )
    gradients = moved(network)
    trainer.step([batch], EVEN)
    assert gradients.keys() == parameters.keys()
    for name, gradient in zip(parameters, own, strict=True):
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: name)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in parameters.values())


@unaugmented
@both_orders
@pytest.mark.parametrize("generator", ["mae", "msg_mae"])
def test_the_generator_is_moved_by_its_own_loss_alone(generator: str, order: str, discriminator: str) -> None:
    trainer = crossed(discriminator, generator, order)
    trainer.adversary = replace(trainer.adversary, learning_rate=lambda step: 0.0)  # the same before and after its turn
    alone(trainer, "adversarial")
    (batch,) = random_batches(4)
    network = trainer.unwrapped_generator
    names = [name for name, _ in network.named_parameters()]
    _, fake = real_and_fake(trainer, batch, with_graph=True)
    loss = 0.5 * (trainer.unwrapped_discriminator(fake).logits - 1).square().mean()
    own = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    gradients = moved(network)
    trainer.step([batch], EVEN)
    for name, gradient in zip(names, own, strict=True):
        expected = torch.zeros(()) if gradient is None else gradient
        torch.testing.assert_close(gradients.get(name, torch.zeros_like(expected)), expected, rtol=1e-3, atol=1e-7)


def real_and_fake(trainer: Trainer, batch, *, with_graph: bool = False) -> tuple[tuple[Tensor, ...], ...]:
    """The pyramids of one batch as the discriminator reads them, made without the trainer's help."""
    levels = trainer.unwrapped_discriminator.levels
    images = batch.to("cpu").images
    with torch.set_grad_enabled(with_graph):
        fake = trainer.unwrapped_generator(images, trainer.draw_masks(batch, EVEN)).pyramid
    return pyramid(images, levels), fake[:levels] if len(fake) > 1 else pyramid(fake[0], levels)


def test_spectral_norms_move_in_the_discriminators_own_passes_alone() -> None:
    """Their power iteration moves buffers at every training forward; the generator's half only looks."""
    states = []
    for order in ("lean", "sequential"):
        trainer = debug_trainer("ls_gan_p", "discriminator.norm=spectral", f"training.order={order}")
        trainer.adversary = replace(trainer.adversary, learning_rate=lambda step: 0.0)
        before = {name: value.clone() for name, value in trainer.unwrapped_discriminator.state_dict().items()}
        trainer.step(random_batches(4), EVEN)
        states.append(trainer.unwrapped_discriminator.state_dict())
        assert any(not torch.equal(value, before[name]) for name, value in states[-1].items())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_uniformity_reaches_the_encoder_and_nothing_behind_it() -> None:
    trainer = debug_trainer("mse", "losses.mse=null", "losses={uniformity: {weight: 1.0}}", "losses.l1.weight=0.0")
    trainer.optimizer.step, trainer.optimizer.zero_grad = lambda: None, lambda: None
    trainer.step(random_batches(4), TrainingProgress(1, 0, 0.0))
    generator = trainer.unwrapped_generator
    for name, parameter in generator.encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    for name, parameter in generator.decoder.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name
