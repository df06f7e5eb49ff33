"""What makes the discriminator cheaper: a share of the images, a square of each, fewer updates."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conftest import debug_config, debug_trainer, inputs_of_step, random_batches, slow
from discriminators import DiscriminatorOutput
from perceptual_mae.config.build import build_shown_parts
from perceptual_mae.data.batch import Batch
from perceptual_mae.errors import UserError
from perceptual_mae.images import pyramid
from perceptual_mae.losses.adversarial import adversarial_discriminator
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.trainer import Trainer

FIRST, EVEN = TrainingProgress(1, 0, 0.0), TrainingProgress(2, 10, 0.6)
GROUP = "discriminator.minibatch_group=2"
both_orders = pytest.mark.parametrize("order", ["lean", slow("sequential")])


def trainer_of(*arguments: str) -> Trainer:
    return debug_trainer(*arguments, dtype=torch.float64)


def shown_to(trainer: Trainer) -> list[tuple[Tensor, ...]]:
    """The pyramids that the discriminator is given from here on, pass by pass."""
    passes: list[tuple[Tensor, ...]] = []
    trainer.unwrapped_discriminator.register_forward_pre_hook(
        lambda _, inputs: passes.append(tuple(level.detach().clone() for level in inputs[0]))
    )
    return passes


def unit(batch: Batch) -> Tensor:
    """Its images in [0, 1]."""
    return batch.to("cpu").images.double()


def first_of(batch: Batch, number: int) -> Batch:
    parts = (each[:number] for each in (batch.images, batch.labels, batch.indices, batch.passes))
    return Batch(*parts)


def weights(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def by_hand(discriminator: torch.nn.Module, levels: list[Tensor], every: int, gamma: float) -> float:
    """R1 of these images' mean logits, at the pyramid that they are."""
    leaves = [level.clone().requires_grad_() for level in levels]
    logits = discriminator(leaves).logits.flatten(1).mean(1)
    gradients = torch.autograd.grad(logits.sum(), leaves)
    squares = [gradient.square().sum() / 4 / 4**number for number, gradient in enumerate(gradients)]
    return float(every * gamma / 2 * sum(squares) / len(levels[0]))


@both_orders
@pytest.mark.parametrize("method", ["ls_gan", slow("msg_gan"), slow("stylegan2_ada_p")])
def test_r1_of_a_share_of_the_batch_is_that_of_its_first_images(method: str, order: str) -> None:
    r1 = ("penalties=null", "penalties={r1: {gamma: 0.5, every: 16, batch_share: 0.5}}")
    trainer = trainer_of(method, f"training.order={order}", *r1)
    discriminator = copy.deepcopy(trainer.unwrapped_discriminator)
    (batch,) = batches = random_batches(6)
    passes = shown_to(trainer)
    scalars = trainer.step(batches, FIRST)
    assert len([each for each in passes if len(each[0]) == 3]) == 1  # a pass of their own
    first = pyramid(unit(batch)[:3], discriminator.levels)
    expected = by_hand(discriminator, list(first), every=16, gamma=0.5)
    assert scalars["penalty/r1"].item() == pytest.approx(expected, rel=1e-6)


@both_orders
def test_r2_of_a_share_of_the_batch_is_that_of_its_first_reconstructions(order: str) -> None:
    trainer = trainer_of("ls_gan", f"training.order={order}", "penalties={r2: {gamma: 0.5, batch_share: 0.3}}")
    discriminator = copy.deepcopy(trainer.unwrapped_discriminator)
    passes = shown_to(trainer)
    scalars = trainer.step(random_batches(4), FIRST)
    (fake,) = (each for each in passes if len(each[0]) == 1)
    assert scalars["penalty/r2"].item() == pytest.approx(by_hand(discriminator, list(fake), 16, 0.5), rel=1e-6)
    assert torch.equal(fake[0], passes[1][0][:1])


@pytest.mark.parametrize("penalty", ["r1", slow("r2")])
def test_the_penalty_of_a_share_teaches_the_discriminator_and_not_the_generator(penalty: str) -> None:
    trained = []
    for gamma in (0.0, 100.0):
        options = f"penalties={{{penalty}: {{gamma: {gamma}, every: 1, batch_share: 0.5}}}}"
        trainer = trainer_of("ls_gan", "training.order=lean", options)
        trainer.step(random_batches(4), FIRST)
        trained.append(trainer)
    without, with_penalty = trained
    generators = [weights(trainer.unwrapped_generator) for trainer in trained]
    assert all(torch.equal(value, generators[1][name]) for name, value in generators[0].items())
    assert not torch.equal(
        without.unwrapped_discriminator.head.weight, with_penalty.unwrapped_discriminator.head.weight
    )


@pytest.mark.slow
def test_the_mean_of_the_penalties_of_all_shares_is_that_of_the_batch() -> None:
    """The estimate has no bias: images come in random order, and each stands first as often."""
    found = []
    (batch,) = random_batches(4)
    for shift in range(4):
        trainer = trainer_of("ls_gan", "penalties={r1: {gamma: 0.5, batch_share: 0.25}}")
        rolled = replace(batch, images=batch.images.roll(shift, 0))
        found.append(trainer.step([rolled], FIRST)["penalty/r1"])
    whole = trainer_of("ls_gan", "penalties={r1: {gamma: 0.5}}").step([batch], FIRST)["penalty/r1"]
    assert torch.stack(found).mean().item() == pytest.approx(whole.item(), rel=1e-6)


@both_orders
def test_the_discriminator_is_shown_a_share_of_the_images_and_pixels_are_compared_in_all(order: str) -> None:
    share = ("ls_gan_p", "discriminator.batch_share=0.5", f"training.order={order}")
    trainer = trainer_of(*share)
    (batch,) = batches = random_batches(4)
    before, passes = copy.deepcopy(trainer.unwrapped_discriminator), shown_to(trainer)
    (inputs,) = inputs_of_step(trainer, batches, EVEN)
    assert {len(each[0]) for each in passes} == {2}
    assert torch.equal(passes[0][0], unit(batch)[:2])
    assert len(inputs.fake_logits) == len(inputs.features("real_features")[0]) == 2
    assert len(inputs.prediction[0]) == 4
    outputs: list[DiscriminatorOutput] = [before(each) for each in passes[:2]]
    expected = adversarial_discriminator(outputs[0].logits, outputs[1].logits)
    again = trainer_of(*share)
    scalars = again.step(batches, EVEN)
    assert scalars["discriminator/loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    whole = trainer_of("ls_gan_p", f"training.order={order}").step(batches, EVEN)
    assert scalars["raw/l1"].item() == pytest.approx(whole["raw/l1"].item(), rel=1e-9)


def test_the_gradient_of_the_adversarial_term_reaches_the_images_that_are_shown_and_no_others() -> None:
    trainer = trainer_of("ls_gan", "discriminator.batch_share=0.5", "training.order=lean")
    (batch,) = trainer.prepare(random_batches(4), FIRST)
    reconstruction = trainer.generator(batch.images, batch.mask)
    _, fake_output = trainer.frozen_outputs(batch, reconstruction, FIRST, tuple)
    (gradient,) = torch.autograd.grad(fake_output.logits.sum(), reconstruction.pyramid[0])
    assert gradient[:2].flatten(1).any(1).all()
    assert not gradient[2:].any()


@pytest.mark.slow
def test_ada_counts_the_images_that_are_shown() -> None:
    share = ("stylegan2_ada_p", "discriminator.batch_share=0.5", GROUP, "augment.interval=4", "augment.kimg=0.1")
    trainer = trainer_of(*share)
    for step in range(3):
        trainer.step(random_batches(8), TrainingProgress(1, step, 0.1))
    state = trainer.adversary.augmentation.state_dict()
    assert (state["images"], state["count"]) == (12, 12)


@pytest.mark.slow
def test_targets_by_position_are_those_of_the_images_shown() -> None:
    words = ("discriminator.fake=composite", "discriminator.form=patch", "losses.adversarial.targets=position")
    shared = trainer_of("ls_gan", *words, "discriminator.batch_share=0.5", "training.order=lean")
    whole = trainer_of("ls_gan", *words, "training.order=lean")
    (batch,) = random_batches(4)
    found, expected = shared.step([batch], FIRST), whole.step([first_of(batch, 2)], FIRST)
    for name in ("discriminator/loss", "raw/adversarial", "discriminator/fake", "discriminator/accuracy_fake"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-9)


REFUSED = {
    "a share of none": (("ls_gan_p", "discriminator.batch_share=0.1"), "leaves 0 of a micro-batch of 8"),
    "a share of none of a micro-batch": (
        ("ls_gan_p", "discriminator.batch_share=0.25", "training.accumulation=4"),
        "leaves 0 of a micro-batch of 2",
    ),
    "less than a group": (("stylegan2_ada_p", "discriminator.batch_share=0.25"), "minibatch_group 4 needs 4"),
    "a crop of a pyramid": (("msg_gan_p", "discriminator.crop=16"), "msg_gan reads a pyramid of 3 levels"),
    "a crop of tokens": (("gan_mae", "discriminator.crop=16"), "token reads whole images with the encoder"),
    "a crop beyond the image": (("ls_gan_p", "discriminator.crop=40"), "no crop of 40 pixels fits in images of 32x32"),
    "a crop below the network": (("ls_gan_p", "discriminator.crop=7"), "too small for ls_gan's form dcgan"),
    "a crop that does not halve": (
        ("stylegan2_ada_p", "discriminator.input=single", "discriminator.crop=17"),
        "stylegan2 needs two levels or more",
    ),
    "positions of a crop": (
        (
            *("ls_gan", "discriminator.fake=composite", "discriminator.form=patch"),
            *("losses.adversarial.targets=position", "discriminator.crop=16"),
        ),
        "targets: position are those of whole images",
    ),
    "no share": (("ls_gan_p", "discriminator.batch_share=0"), "must be a number > 0 and <= 1"),
    "no interval": (("ls_gan_p", "discriminator.every=0"), "must be a whole number >= 1"),
    "a share of the clean image": (
        ("ls_gan_p", "penalties={r1: {leaf: clean_image, batch_share: 0.5}}"),
        "r1 at the clean_image takes the whole batch",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_a_line(case: str) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(UserError) as refused:
        debug_config(*arguments)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@both_orders
def test_it_learns_in_every_nth_step_and_stands_still_between(order: str) -> None:
    trainer = trainer_of("ls_gan_p", "discriminator.every=2", f"training.order={order}")
    learned, reported = [], []
    for step in range(4):
        before = weights(trainer.unwrapped_discriminator)
        generator = weights(trainer.unwrapped_generator)
        scalars = trainer.step(random_batches(4, seed=step), TrainingProgress(1, step, 0.1))
        after = trainer.unwrapped_discriminator.state_dict()
        learned.append(any(not torch.equal(value, after[name]) for name, value in before.items()))
        reported.append("discriminator/loss" in scalars)
        now = trainer.unwrapped_generator.state_dict()
        moves = any(not torch.equal(value, now[name]) for name, value in generator.items())
        assert moves or step == 0  # the warm-up begins at a learning rate of 0
    assert learned == reported == [True, False, True, False]


@pytest.mark.parametrize("micro_batches", [slow(1), 2])
@both_orders
def test_between_its_updates_the_generator_takes_the_step_against_a_discriminator_that_stands_still(
    order: str, micro_batches: int
) -> None:
    """The reference learns in every step, but so slowly that it stands still."""
    found, expected = (
        trainer_of("ls_gan_p", f"training.order={order}", *options)
        for options in (("discriminator.every=1000",), ("optimizer.discriminator.lr=1e-30",))
    )
    for step in (1, 2, 11):
        scalars = []
        for trainer in (found, expected):
            progress = TrainingProgress(1 + step // 8, step, step / 16)
            scalars.append(trainer.step(random_batches(8, micro_batches, seed=step), progress))
        assert scalars[0].keys() == {name for name in scalars[1] if not name.startswith("discriminator/")}
    reference = expected.unwrapped_generator.state_dict()
    for name, value in found.unwrapped_generator.state_dict().items():
        torch.testing.assert_close(value, reference[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.slow
def test_lazy_penalties_count_the_updates_and_path_length_the_generators_steps() -> None:
    options = ("stylegan2_ada_p", "discriminator.every=2", "penalties.r1.every=2", "penalties.path_length.every=3")
    trainer, due = debug_trainer(*options), []
    for step in range(9):
        scalars = trainer.step(random_batches(4), TrainingProgress(1, step, 0.1))
        due.append({name.removeprefix("penalty/") for name in scalars if name.startswith("penalty/")})
    assert [step for step, names in enumerate(due) if "r1" in names] == [0, 4, 8]
    assert [step for step, names in enumerate(due) if "path_length" in names] == [0, 3, 6]


@pytest.mark.slow
def test_adas_interval_counts_the_updates() -> None:
    ada = ("augment.interval=3", "augment.kimg=0.1", "augment.initial_p=0.5")
    trainer = debug_trainer("stylegan2_ada_p", "discriminator.every=2", *ada)
    for step in range(5):
        scalars = trainer.step(random_batches(4), TrainingProgress(1, step, 0.1))
        assert ("augment/p" in scalars) == (step % 2 == 0)
    assert abs(trainer.adversary.augmentation.p - 0.5) == pytest.approx(12 / 100)  # three updates of four images


@pytest.mark.slow
def test_a_copy_follows_a_discriminator_that_seldom_learns() -> None:
    network = [f"losses.{term}.network={{kind: snapshot, every: 1}}" for term in ("feature_matching", "style")]
    trainer = debug_trainer("ls_gan_p", *network, "discriminator.every=2")
    for step in range(3):
        trainer.step(random_batches(4), TrainingProgress(2, step, 0.5))
    (copied,) = trainer.networks.copies.values()
    live = trainer.unwrapped_discriminator.state_dict()
    assert not all(torch.equal(value, live[name]) for name, value in copied.copy.state_dict().items())
    trainer.step(random_batches(4), TrainingProgress(2, 3, 0.5))
    assert all(torch.equal(value, live[name]) for name, value in copied.copy.state_dict().items())


@both_orders
@pytest.mark.parametrize("method", ["ls_gan_p", slow("stylegan2_ada_p")])
def test_real_and_fake_are_cut_at_the_same_place(method: str, order: str) -> None:
    single = ["discriminator.input=single"] if method == "stylegan2_ada_p" else []
    trainer = trainer_of(method, *single, "discriminator.crop=16", f"training.order={order}", "augment=null")
    (batch,) = batches = random_batches(4)
    passes = shown_to(trainer)
    (inputs,) = inputs_of_step(trainer, batches, EVEN)
    real, fake = passes[0][0], passes[1][0]
    assert real.shape == fake.shape == (4, 3, 16, 16)
    places = []
    for number in range(4):
        (found,) = (
            (top, left)
            for top in range(17)
            for left in range(17)
            if torch.equal(unit(batch)[number, :, top : top + 16, left : left + 16], real[number])
        )
        top, left = found
        assert torch.equal(inputs.fake[0][number, :, top : top + 16, left : left + 16], fake[number])
        places.append(found)
    assert len(set(places)) > 1


def test_an_images_square_is_its_own_whatever_the_batch_and_another_in_each_step() -> None:
    parts = trainer_of("ls_gan_p", "discriminator.crop=16").adversary.shown_parts
    alone, together = parts(torch.tensor([7]), 3), parts(torch.tensor([5, 7]), 3)
    assert alone.corners == together.corners[1:]
    assert len({parts.corner(step, 7) for step in range(100)}) > 60


def test_every_place_of_a_square_is_as_likely() -> None:
    parts = trainer_of("ls_gan_p", "discriminator.crop=30").adversary.shown_parts
    corners = [parts.corner(0, index) for index in range(1800)]
    counts = [corners.count((top, left)) for top in range(3) for left in range(3)]
    assert sum(counts) == 1800
    assert all(150 < count < 250 for count in counts)  # 200, with a deviation of 13


@pytest.mark.slow
def test_whole_images_are_a_crop_of_their_own_size() -> None:
    whole, cut = (trainer_of("ls_gan_p", *options) for options in ((), ("discriminator.crop=32",)))
    scalars = [trainer.step(random_batches(4), EVEN) for trainer in (whole, cut)]
    assert all(scalars[1][name].item() == value.item() for name, value in scalars[0].items())


def test_the_weight_of_r1_and_the_augmentation_are_those_of_the_square() -> None:
    options = ("stylegan2_ada_p", "discriminator.input=single", "data.image_size=64", "data.size=64")
    whole, cut = (debug_trainer(*options, *more) for more in ((), ("discriminator.crop=32",)))
    assert cut.adversary.r1.gamma == pytest.approx(whole.adversary.r1.gamma / 4)
    assert (whole.adversary.augmentation.execution, cut.adversary.augmentation.execution) == ("fast", "exact")


def test_path_length_takes_its_own_share_of_images_at_their_squares() -> None:
    options = ("discriminator.input=single", "discriminator.crop=16", "discriminator.batch_share=0.5", GROUP)
    trainer = trainer_of("stylegan2_ada_p", *options, "penalties={path_length: {batch_share: 0.75}}", "augment=null")
    passes = shown_to(trainer)
    scalars = trainer.step(random_batches(4), TrainingProgress(1, 4, 0.1))
    assert scalars["path_length/mean"].item() > 0
    assert [each[0].shape for each in passes] == [(2, 3, 16, 16), (2, 3, 16, 16), (3, 3, 16, 16)]


def test_the_share_is_that_of_each_process() -> None:
    """What one process may do, two may not: their micro-batches are half as large."""
    config = debug_config("ls_gan_p", "discriminator.batch_share=0.125")
    arguments = (config.discriminator, config.data.image, 1)
    assert build_shown_parts(*arguments, 8, 0) is not None
    with pytest.raises(ValueError, match="leaves 0 of a micro-batch of 4 images"):
        build_shown_parts(*arguments, 4, 0)
