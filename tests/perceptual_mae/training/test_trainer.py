"""The adversarial step: each half moves its own network and nothing else."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from conftest import (
    ADVERSARIAL,
    QUICK_METHODS,
    debug_config,
    debug_trainer,
    inputs_of_step,
    random_batches,
    real_levels,
    slow,
    term_inputs,
    tiered,
)
from discriminators.penalties import r1
from perceptual_mae.config.build import loss_network_keys
from perceptual_mae.config.layers import list_methods
from perceptual_mae.errors import UserError
from perceptual_mae.generator.reconstruction import Reconstruction
from perceptual_mae.loss_networks import LIVE
from perceptual_mae.objective.objective import Objective
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.metrics import output_diversity
from perceptual_mae.training.path_length_step import path_length_step
from perceptual_mae.training.trainer import MicroBatch, Trainer

ODD, EVEN = TrainingProgress(1, 3, 0.2), TrainingProgress(2, 9, 0.6)
METHODS = sorted(method.name for method in list_methods())


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(before: dict[str, torch.Tensor], module: nn.Module) -> bool:
    return all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def gradients_at_updates(trainer: Trainer) -> dict[str, dict[str, torch.Tensor]]:
    """Afterwards this holds, by network, the gradients that its last update was taken with."""
    gradients: dict[str, dict[str, torch.Tensor]] = {}

    def record(name: str, network: nn.Module) -> None:
        named = network.named_parameters()
        gradients[name] = {key: each.grad.clone() for key, each in named if each.grad is not None}

    networks = {"generator": (trainer.unwrapped_generator, trainer.optimizer)}
    if trainer.adversary is not None:
        networks["discriminator"] = (trainer.unwrapped_discriminator, trainer.discriminator_optimizer)
    for name, (network, optimizer) in networks.items():
        optimizer.optimizer.register_step_pre_hook(lambda *_, name=name, network=network: record(name, network))
    return gradients


@pytest.mark.parametrize("order", ["lean", "sequential"])
@pytest.mark.parametrize("method", tiered(ADVERSARIAL))
def test_each_update_moves_its_own_network_and_leaves_the_other_bit_identical(method: str, order: str) -> None:
    for still in ("generator", "discriminator"):
        trainer = debug_trainer(method, f"training.order={order}")
        if still == "generator":
            trainer.learning_rate = lambda step: 0.0
        else:
            trainer.adversary = replace(trainer.adversary, learning_rate=lambda step: 0.0)
        networks = {"generator": trainer.unwrapped_generator, "discriminator": trainer.unwrapped_discriminator}
        before = {name: [each.detach().clone() for each in network.parameters()] for name, network in networks.items()}
        for progress in (ODD, EVEN):
            trainer.step(random_batches(4), progress)
        for name, network in networks.items():
            is_same = all(torch.equal(*pair) for pair in zip(network.parameters(), before[name], strict=True))
            assert is_same == (name == still)
            assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("order", ["lean", "sequential"])
@pytest.mark.parametrize("method", tiered(ADVERSARIAL))
def test_the_discriminators_gradient_is_that_of_its_own_loss_alone(method: str, order: str) -> None:
    overrides = [f"training.order={order}", "augment=null", *without_penalties(method)]
    trainer, fresh = (debug_trainer(method, *overrides, dtype=torch.float64) for _ in range(2))
    gradients = gradients_at_updates(trainer)
    trainer.step(random_batches(4), EVEN)
    (batch,) = fresh.prepare(random_batches(4), EVEN)
    with torch.no_grad():
        fake = fresh.fake_images(batch, fresh.unwrapped_generator(batch.images, batch.mask))
    real, fake = (fresh.unwrapped_discriminator(levels) for levels in (real_levels(fresh, batch.images), fake))
    fresh.adversary.loss(real.logits, fake.logits, batch.mask, fresh.unwrapped_generator.grid).backward()
    for name, parameter in fresh.unwrapped_discriminator.named_parameters():
        torch.testing.assert_close(gradients["discriminator"][name], parameter.grad, rtol=1e-9, atol=1e-14, msg=name)


def without_penalties(method: str) -> list[str]:
    return [
        f"penalties.{name}=null" for name, section in debug_config(method).penalties.root.items() if section is not None
    ]


@pytest.mark.parametrize("heads", ["false", "true"])
@pytest.mark.parametrize("method", tiered(METHODS))
def test_every_trainable_tensor_gets_a_gradient_within_an_odd_and_an_even_epoch(method: str, heads: str) -> None:
    if method == "mse_norm_pix" and heads == "true":
        pytest.skip("norm_pix predicts normalised patches, which have no pyramid")
    if method == "ms_ssim_l1" and heads == "true":
        pytest.skip("refused: no term of this method reads the low levels")
    trainer = debug_trainer(method, f"generator.skips={heads}", f"generator.rgb_heads={heads}")
    touched: set[str] = set()

    def watch(name: str):
        return lambda gradient: touched.add(name) if gradient.abs().sum() > 0 else None

    networks = {"generator": trainer.unwrapped_generator}
    if trainer.adversary is not None:
        networks["discriminator"] = trainer.unwrapped_discriminator
    if (
        method == "projected_p"
    ):  # else both hinges are active for all logits, and a bias gets -1 of one and 1 of the other
        with torch.no_grad():
            for head in trainer.unwrapped_discriminator.heads:
                head.out.bias += 1.5
    expected = set()
    for owner, network in networks.items():
        for name, parameter in network.named_parameters():
            expected.add(f"{owner}.{name}")
            parameter.register_hook(watch(f"{owner}.{name}"))
    for progress in (ODD, EVEN, EVEN):
        trainer.step(random_batches(4), progress)
    # r - f has nothing of what is added to all logits
    assert touched == expected - ({"discriminator.epilogue.out.bias"} if method == "r3gan_p" else set())


def has_live(method: str, name: str) -> bool:
    """Tell whether a method has a term, and compares through its discriminator by it."""
    losses = debug_config(method).losses
    return name in losses and loss_network_keys(losses).get(name, LIVE) == LIVE


@pytest.mark.parametrize(
    ("name", "method"),
    [
        (name, method) if method in QUICK_METHODS else slow(name, method)
        for name, method in itertools.product(("feature_matching", "style"), ADVERSARIAL)
        if has_live(method, name)
    ],
)
def test_a_perceptual_term_alone_reaches_every_head_and_through_the_skips_the_encoder(name: str, method: str) -> None:
    trainer = debug_trainer(method)
    line = trainer.objective.lines[name]
    trainer.objective.lines = {name: line}
    inputs, _ = term_inputs(trainer, EVEN)
    trainer.objective(inputs, EVEN).total.backward()
    gradients = {key: value.grad for key, value in trainer.unwrapped_generator.named_parameters()}
    assert [key for key, gradient in gradients.items() if gradient is None or not gradient.any()] == []


def test_perceptual_terms_are_on_in_even_epochs_counted_from_one() -> None:
    objective: Objective = debug_trainer("ls_gan_p").objective
    active = {epoch: objective.active(TrainingProgress(epoch, 0, 0.0)) for epoch in range(1, 7)}
    for epoch in (1, 3, 5):
        assert active[epoch] == ["l1", "adversarial"]
    for epoch in (2, 4, 6):
        assert set(active[epoch]) == {"l1", "feature_matching", "style", "adversarial"}


@pytest.mark.parametrize("method", tiered(METHODS))
def test_the_total_is_the_sum_of_the_terms_each_counted_once(method: str) -> None:
    trainer = debug_trainer(method)
    trainer.step(random_batches(4), TrainingProgress(2, 8, 0.5))
    scalars = trainer.step(random_batches(4), EVEN)
    weighted = [value for name, value in scalars.items() if name.startswith("weighted/")]
    torch.testing.assert_close(scalars["total"], torch.stack(weighted).sum())
    constant = {name: line.weight for name, line in trainer.objective.lines.items() if isinstance(line.weight, float)}
    for name, weight in constant.items():
        torch.testing.assert_close(scalars[f"weighted/{name}"], weight * scalars[f"raw/{name}"])


@pytest.mark.parametrize("order", ["lean", "sequential"])
def test_features_come_from_the_live_discriminator(order: str) -> None:
    trainer = debug_trainer("ls_gan_p", f"training.order={order}", "optimizer.discriminator.lr=1e-30")
    (inputs,) = inputs_of_step(trainer, random_batches(4), EVEN)
    with torch.no_grad():
        expected = trainer.unwrapped_discriminator((random_batches(4)[0].to("cpu").images,)).features
    for own, live in zip(inputs.features("real_features"), expected, strict=True):
        torch.testing.assert_close(own, live, rtol=0, atol=0)
    assert not any(feature.requires_grad for feature in inputs.features("real_features"))
    assert all(feature.requires_grad for feature in inputs.features("fake_features"))


def test_no_discriminator_pass_runs_that_no_active_term_reads() -> None:
    trainer = debug_trainer("ls_gan_p", "training.order=sequential")  # lean has two passes to begin with
    passes = []
    trainer.unwrapped_discriminator.register_forward_hook(lambda *_: passes.append(1))
    trainer.step(random_batches(4), TrainingProgress(1, 3, 0.1))
    assert len(passes) == 3  # real and fake for the discriminator, fake for the adversarial term
    passes.clear()
    trainer.step(random_batches(4), TrainingProgress(2, 9, 0.6))
    assert len(passes) == 4  # and real for the perceptual terms


def test_one_generator_forward_serves_both_halves() -> None:
    trainer = debug_trainer("ls_gan_p")
    passes = []
    trainer.unwrapped_generator.register_forward_hook(lambda *_: passes.append(1))
    trainer.step(random_batches(4), EVEN)
    assert len(passes) == 1


@pytest.mark.parametrize("batch_size", [1, slow(2), 3, slow(5)])
@pytest.mark.parametrize("method", tiered(["mse", "ms_ssim_l1", "ls_gan_p", "msg_gan_p", "stylegan2_ada_p"]))
def test_any_batch_size_trains(method: str, batch_size: int) -> None:
    trainer = debug_trainer(method)
    for progress in (TrainingProgress(1, 0, 0.0), EVEN):
        scalars = trainer.step(random_batches(batch_size), progress)
        assert all(torch.isfinite(value) for value in scalars.values())


@pytest.mark.parametrize("method", ["mse", "l1", "ls_gan_p"])
def test_images_need_not_be_square(method: str) -> None:
    trainer = debug_trainer(method, "data.image_size=[96, 64]", "generator.rgb_heads=true", "generator.skips=true")
    scalars = trainer.step(random_batches(2, shape=(3, 96, 64)), EVEN)
    assert all(torch.isfinite(value) for value in scalars.values())


@pytest.mark.parametrize("batch_size", [8, slow(16)])  # micro-batches of one and two groups of minibatch_stddev
@pytest.mark.parametrize("method", ["ls_gan_p", *map(slow, ["mse", "msg_gan_p", "stylegan2_ada_p"])])
def test_accumulated_micro_batches_equal_one_batch(method: str, batch_size: int) -> None:
    trained = []
    for micro_batches in (1, 2):
        trainer = debug_trainer(method, "training.order=sequential", dtype=torch.float64)
        for step in (0, 4, 9):  # path length is due twice, and its first time only measures
            progress = TrainingProgress(1 + step % 2, step, step / 16)
            scalars = trainer.step(random_batches(batch_size, micro_batches, seed=step), progress)
        trained.append((scalars, weights(trainer.unwrapped_generator)))
    (whole, whole_weights), (parts, parts_weights) = trained
    for name in whole:
        if name != "variety":  # a deviation over the images of one micro-batch
            torch.testing.assert_close(parts[name], whole[name], rtol=1e-6, atol=1e-8)
    for name, value in whole_weights.items():
        torch.testing.assert_close(parts_weights[name], value, rtol=0, atol=1e-8)


def test_a_plain_run_repeats_bit_for_bit() -> None:
    outcomes = []
    for _ in range(2):
        trainer = debug_trainer("ls_gan_p")
        for step in range(3):
            trainer.step(random_batches(4, seed=step), TrainingProgress(2, step, 0.1))
        outcomes.append(weights(trainer.unwrapped_generator))
    assert all(torch.equal(value, outcomes[1][name]) for name, value in outcomes[0].items())


def test_the_average_of_weights_follows_the_generator() -> None:
    trainer = debug_trainer("mse", "training.ema_kimg=0.01")
    before = copy.deepcopy(weights(trainer.ema.module))
    for step in range(3):
        trainer.step(random_batches(8), TrainingProgress(1, step + 1, 0.2))
    name, decay = "decoder.pred.weight", 0.5 ** (8 / 10)  # half-life of 10 images, 8 a step
    average = weights(trainer.ema.module)[name]
    trainer.step(random_batches(8), TrainingProgress(1, 4, 0.2))
    expected = decay * average + (1 - decay) * weights(trainer.unwrapped_generator)[name]
    torch.testing.assert_close(trainer.ema.module.state_dict()[name], expected)
    assert not torch.equal(before[name], average)


@pytest.mark.slow
def test_a_generator_learns_one_batch_by_heart() -> None:
    trainer = debug_trainer("l1")
    batches = random_batches(2)
    smooth = [replace(batch, images=batch.images // 8 + 96) for batch in batches]
    losses = [float(trainer.step(smooth, TrainingProgress(1, min(step, 8), 0.5))["raw/l1"]) for step in range(150)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("order", ["lean", "sequential"])
def test_a_step_that_the_fp16_scaler_skips_is_counted_and_the_next_one_trains_again(order: str) -> None:
    trainer = debug_trainer("ls_gan_p", f"training.order={order}")
    # Accelerate scales gradients on a GPU only; this is what it sets up there.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    trainer.accelerator.scaler = scaler
    trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, scaler=scaler)
    trainer.discriminator_optimizer = AcceleratedOptimizer(trainer.discriminator_optimizer.optimizer, scaler=scaler)
    networks = (trainer.unwrapped_generator, trainer.unwrapped_discriminator)
    overflows = [next(network.parameters()).register_hook(lambda gradient: gradient / 0) for network in networks]
    before = [weights(network) for network in networks]
    scalars = trainer.step(random_batches(4), ODD)
    assert float(scalars["skipped/generator"]) == float(scalars["skipped/discriminator"]) == 1
    assert all(same(state, network) for state, network in zip(before, networks, strict=True))
    for overflow in overflows:
        overflow.remove()
    scalars = trainer.step(random_batches(4), ODD)
    assert float(scalars["skipped/generator"]) == float(scalars["skipped/discriminator"]) == 0
    assert not any(same(state, network) for state, network in zip(before, networks, strict=True))


def test_fp16_without_a_gpu_is_refused_and_not_silently_ignored() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=r"training\.precision: fp16 needs a GPU"):
        debug_trainer("mse", "training.precision=fp16")


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_weights_that_a_launcher_would_shard_are_refused_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UserError, match=rf"is not supported, .* unset ACCELERATE_USE_{name}"):
        debug_trainer("ls_gan_p")


@pytest.mark.parametrize("order", ["lean", "sequential"])
def test_bf16_agrees_with_full_precision_and_losses_stay_float32(order: str) -> None:
    outcomes = []
    for kind in ("no", "bf16"):
        trainer = debug_trainer("ls_gan_p", f"training.precision={kind}", f"training.order={order}")
        trainer.step(random_batches(8), TrainingProgress(1, 0, 0.0))
        outcomes.append(trainer.step(random_batches(8), TrainingProgress(2, 9, 0.5)))
    for name in ("raw/l1", "raw/feature_matching", "raw/style", "raw/adversarial", "discriminator/loss"):
        torch.testing.assert_close(outcomes[1][name], outcomes[0][name], rtol=0.05, atol=1e-3)
        assert outcomes[1][name].dtype == torch.float32


@pytest.mark.parametrize("method", ["mse", "ls_gan_p"])
def test_a_generator_that_gives_every_image_the_same_answer_shows(method: str) -> None:
    trainer = debug_trainer(method)
    assert float(trainer.step(random_batches(8), TrainingProgress(1, 0, 0.0))["variety"]) > 0.05
    torch.nn.init.zeros_(trainer.unwrapped_generator.decoder.pred.weight)
    assert float(trainer.step(random_batches(8), TrainingProgress(1, 8, 0.1))["variety"]) < 1e-3


def test_output_diversity_is_the_mean_standard_deviation_over_the_originals() -> None:
    fake, real = torch.rand(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = fake.std(0).mean() / (2 * real).std(0).mean()
    torch.testing.assert_close(output_diversity(fake, 2 * real), expected)


def test_gradients_are_clipped_to_the_norm_that_is_asked_for() -> None:
    trainer = debug_trainer("l1", "optimizer.clip_norm=1e-3")
    seen = []
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: seen.append(
            torch.stack([parameter.grad.norm() for parameter in trainer.unwrapped_generator.parameters()]).norm()
        )
    )
    scalars = trainer.step(random_batches(4), ODD)
    assert float(scalars["gradient_norm/generator"]) > 1e-3
    assert float(seen[0]) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(("schedule", "expected"), [("constant", 1.5e-4), ("follow", 0.5 * 1.5e-4)])
def test_the_discriminators_rate_is_constant_or_follows_the_generators(schedule: str, expected: float) -> None:
    trainer = debug_trainer("ls_gan_p", f"optimizer.discriminator.schedule={schedule}", "schedule.warmup_ratio=0.0")
    assert trainer.adversary.learning_rate(0) == pytest.approx(1.5e-4 if schedule == "constant" else 0.0)
    warmed = 1 + 15 / 2  # half way down the cosine after the one warm-up step of the debug timetable
    assert trainer.adversary.learning_rate(warmed) == pytest.approx(expected)


def test_real_and_fake_are_augmented_apart_for_the_discriminator_and_together_for_their_features() -> None:
    trainer = debug_trainer("stylegan2_ada_p", "augment.initial_p=0.8")
    indices, image = torch.arange(4), torch.rand(4, 3, 32, 32)

    def augmented(purpose: str, step: int, images: slice = slice(None)) -> torch.Tensor:
        batch = MicroBatch(image[images], torch.zeros(0), indices[images])
        return trainer.augmentation(purpose, batch, TrainingProgress(1, step, 0.1))((image[images],))[0]

    assert not torch.allclose(augmented("real", 5), augmented("fake", 5))
    pair = augmented("pair", 5)
    assert torch.equal(augmented("pair", 5), pair)
    assert not torch.allclose(augmented("pair", 6), pair)
    torch.testing.assert_close(augmented("pair", 5, slice(2, 3)), pair[2:3])


def test_the_augmentation_adapts_every_fourth_step_by_the_speed_that_is_asked_for() -> None:
    trainer = debug_trainer(
        "stylegan2_ada_p", "augment.kimg=1.0", "augment.initial_p=0.5", "penalties.path_length=null"
    )
    trainer.adversary = replace(
        trainer.adversary, learning_rate=lambda step: 0.0
    )  # a discriminator that stays undecided: r_t below its target
    seen = [
        float(trainer.step(random_batches(8), TrainingProgress(1, step + 1, 0.1))["augment/p"]) for step in range(8)
    ]
    assert seen == pytest.approx([0.5] * 3 + [0.468] * 4 + [0.436])


def test_penalties_are_lazy_and_only_path_length_moves_the_generator_again() -> None:
    trainer = debug_trainer("stylegan2_ada_p")
    for step, expected in ((0, {"penalty/r1", "penalty/path_length"}), (4, {"penalty/path_length"}), (5, set())):
        scalars = trainer.step(random_batches(4), TrainingProgress(1, step, 0.1))
        assert {name for name in scalars if name.startswith("penalty/")} == expected
        assert all(float(scalars[name]) >= 0 for name in expected)
    discriminator = weights(trainer.unwrapped_discriminator)
    generator = weights(trainer.unwrapped_generator)
    progress = TrainingProgress(1, 8, 0.1)
    prepared = trainer.prepare(random_batches(4), progress)
    path_length_step(trainer, trainer.adversary.path_length, prepared, progress)
    assert same(discriminator, trainer.unwrapped_discriminator)
    assert not same(generator, trainer.unwrapped_generator)


def test_path_length_shortens_adams_stride_for_the_extra_step() -> None:
    plain, extra = debug_trainer("msg_gan_p"), debug_trainer("stylegan2_ada_p")
    assert extra.learning_rate(1) == pytest.approx(0.8 * plain.learning_rate(1))
    betas = extra.optimizer.param_groups[0]["betas"]
    assert betas == pytest.approx((0.9**0.8, 0.95**0.8))


def test_the_path_step_is_clipped_like_the_other_one() -> None:
    trainer = debug_trainer("stylegan2_ada_p", "optimizer.clip_norm=1e-3")
    norms = []
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            float(torch.stack([parameter.grad.norm() for parameter in trainer.unwrapped_generator.parameters()]).norm())
        )
    )
    trainer.step(random_batches(4), TrainingProgress(1, 4, 0.2))  # the first application only measures
    scalars = trainer.step(random_batches(4), TrainingProgress(1, 8, 0.4))
    assert len(norms) == 4
    assert float(scalars["gradient_norm/path_length"]) > 1e-3
    assert norms[-1] == pytest.approx(1e-3, rel=1e-3)


def test_r1_joins_the_discriminators_gradient() -> None:
    gradients = []
    for gamma in (0.0, 50.0):
        trainer = debug_trainer("stylegan2_ada_p", f"penalties.r1.gamma={gamma}", "penalties.path_length=null")
        seen: list[torch.Tensor] = []
        weight = next(trainer.unwrapped_discriminator.parameters())
        trainer.discriminator_optimizer.optimizer.register_step_pre_hook(
            lambda *_, seen=seen, weight=weight: seen.append(weight.grad.clone())
        )
        trainer.step(random_batches(4), TrainingProgress(1, 0, 0.0))
        gradients.append((seen[0], weight, trainer))
    (without, _, _), (with_penalty, _, trainer) = gradients
    fresh = debug_trainer("stylegan2_ada_p", "penalties.path_length=null")
    images = random_batches(4)[0].to("cpu").images
    leaves = tuple(level.requires_grad_() for level in real_levels(fresh, images))
    logits = fresh.unwrapped_discriminator(leaves).logits.flatten(1).mean(1)
    (expected,) = torch.autograd.grad(16 * r1(logits, leaves, 50.0), next(fresh.unwrapped_discriminator.parameters()))
    torch.testing.assert_close(with_penalty - without, expected, rtol=1e-3, atol=1e-5)


def test_the_discriminator_learns_on_images_augmented_apart_and_compares_features_of_images_augmented_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    purposes: list[str] = []
    augmentation = Trainer.augmentation
    monkeypatch.setattr(
        Trainer, "augmentation", lambda self, name, *rest: (purposes.append(name), augmentation(self, name, *rest))[1]
    )
    apart = ("training.order=sequential", "augment.initial_p=0.8", "penalties.path_length=null")
    trainer = debug_trainer("stylegan2_ada_p", *apart)
    forward = trainer.unwrapped_generator.forward

    def perfect(images: torch.Tensor, *rest: torch.Tensor) -> Reconstruction:
        """Reconstruct every image exactly: features are then equal where both are augmented alike."""
        made = forward(images, *rest)
        exact = zip(made.pyramid, real_levels(trainer, images), strict=True)
        return replace(made, pyramid=tuple(0 * level + real for level, real in exact))

    trainer.unwrapped_generator.forward = perfect
    (inputs,) = inputs_of_step(trainer, random_batches(4), TrainingProgress(2, 9, 0.5))
    assert purposes == ["real", "fake", "pair"]
    pairs = zip(inputs.features("fake_features"), inputs.features("real_features"), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    clean = trainer.unwrapped_discriminator(inputs.fake).features
    assert not torch.allclose(clean[0], inputs.features("real_features")[0])


@pytest.mark.parametrize(("kind", "expected"), [("least_squares", -1.0), ("hinge", 1.0)])
def test_how_sure_the_discriminator_is_counts_from_where_it_is_undecided(kind: str, expected: float) -> None:
    trainer = debug_trainer(
        "stylegan2_ada_p", f"losses.adversarial.kind={kind}", "penalties=null", "augment.interval=1"
    )
    trainer.adversary = replace(trainer.adversary, learning_rate=lambda step: 0.0)
    with torch.no_grad():
        for parameter in trainer.unwrapped_discriminator.parameters():
            parameter.zero_()
        list(trainer.unwrapped_discriminator.parameters())[-1].fill_(0.3)  # says 0.3 to everything
    assert float(trainer.step(random_batches(4), TrainingProgress(1, 1, 0.1))["augment/r_t"]) == expected


def test_the_running_path_length_is_that_of_the_first_half_of_the_images() -> None:
    trainer = debug_trainer("stylegan2_ada_p", "penalties.path_length.decay=1.0")
    sizes = []
    forward = trainer.unwrapped_generator.forward
    trainer.unwrapped_generator.forward = lambda images, *rest: (sizes.append(len(images)), forward(images, *rest))[1]
    first = trainer.step(random_batches(8), TrainingProgress(1, 4, 0.2))
    assert sizes == [8, 4]
    assert float(first["penalty/path_length"]) == 0  # nothing to compare with yet
    second = trainer.step(random_batches(8), TrainingProgress(1, 8, 0.2))
    # With decay 1 the mean is the latest batch's; the second penalty compares its lengths with the first's mean.
    means = [float(scalars["path_length/mean"]) for scalars in (first, second)]
    assert min(means) > 0
    assert float(second["penalty/path_length"]) >= 4 * 2 * (means[1] - means[0]) ** 2 * (1 - 1e-5)
