"""Masks that follow what the encoder looks at: which patches they hide, and what they cost other maskings (nothing)."""

from pathlib import Path

import pytest
import torch
from test_pretraining import stop_after, trained
from torch import Tensor

from conftest import debug_config, debug_trainer, random_batches
from perceptual_mae import Run, pretrain
from perceptual_mae.config import build
from perceptual_mae.config.parsing import load_config
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.accelerator import make_accelerator
from perceptual_mae.evaluation.reconstruction.data import open_held_out
from perceptual_mae.evaluation.reconstruction.evaluate import evaluate_run
from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.masking import attention, num_hidden, random
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.seeding import stream
from perceptual_mae.training.signals import Interrupted
from perceptual_mae.training.trainer import Trainer

FIRST = TrainingProgress(1, 0, 0.0)
PLANTED = torch.tensor([0.02, 0.3, 0.01, 0.1, 0.05, 0.2, 0.04, 0.28])
KIND = "masking.kind=attention"


def hide(num_hidden: int, seed: int = 0, shares: Tensor = PLANTED, **options: object) -> list[int]:
    mask = attention(shares, (2, 4), num_hidden, torch.Generator().manual_seed(seed), **options)
    return mask.nonzero().flatten().tolist()


def watch_looks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool, bool]]:
    """Of every look of an encoder: how many images, whether gradients were recorded, whether weights were trained."""
    seen: list[tuple[int, bool, bool]] = []
    look = Encoder.class_attention

    def watched(self: Encoder, images: Tensor) -> Tensor:
        found = look(self, images)
        seen.append((len(images), torch.is_grad_enabled(), found.requires_grad))
        return found

    monkeypatch.setattr(Encoder, "class_attention", watched)
    return seen


def test_at_temperature_0_what_is_looked_at_most_is_hidden_or_what_is_least() -> None:
    assert hide(3, temperature=0.0) == [1, 5, 7]
    assert hide(3, temperature=0.0, hide="unattended") == [0, 2, 6]
    assert hide(3, temperature=0.0, seed=1) == hide(3, temperature=0.0, seed=2)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 100.0])
@pytest.mark.parametrize("number", range(9))
def test_any_number_is_hidden_exactly_even_where_attention_is_zero_or_equal(number: int, temperature: float) -> None:
    for shares in (PLANTED, torch.zeros(8), torch.ones(8), PLANTED * (PLANTED > 0.1)):
        for which in ("attended", "unattended"):
            assert len(hide(number, shares=shares, temperature=temperature, hide=which)) == number


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("which", ["attended", "unattended"])
def test_the_first_draw_goes_as_share_to_the_power_of_one_over_temperature(which: str, temperature: float) -> None:
    draws, generator = 2000, torch.Generator().manual_seed(0)
    options = {"hide": which, "temperature": temperature}
    drawn = torch.stack([attention(PLANTED, (2, 4), 1, generator, **options) for _ in range(draws)]).float().mean(0)
    chance = PLANTED.double() ** ((1 if which == "attended" else -1) / temperature)
    chance /= chance.sum()
    sigma = (chance * (1 - chance) / draws).sqrt()
    assert ((drawn - chance).abs() < 4 * sigma + 1e-9).all()


def test_several_draws_are_without_replacement() -> None:
    """Of two hidden among three with chances p, the pair (0, 1) has p0 p1 / (1 - p0) + p1 p0 / (1 - p1)."""
    p, generator = torch.tensor([0.5, 0.3, 0.2]), torch.Generator().manual_seed(0)
    masks = torch.stack([attention(p, (1, 3), 2, generator) for _ in range(2000)])
    share = (masks[:, 0] & masks[:, 1]).float().mean()
    expected = 0.5 * 0.3 / 0.5 + 0.3 * 0.5 / 0.7
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 2000) ** 0.5


def test_a_temperature_below_0_is_refused_in_the_configuration() -> None:
    with pytest.raises(UserError, match=r"masking.temperature=-1: masking: attention needs a temperature >= 0, not -1"):
        load_config(["quickstart", KIND, "masking.temperature=-1"])
    with pytest.raises(UserError, match="masking: block needs smallest >= 1"):
        load_config(["quickstart", "masking.kind=block", "masking.smallest=0"])


def test_training_masks_hide_what_the_encoder_as_it_now_is_attends_to() -> None:
    trainer = debug_trainer("mse", KIND, "masking.temperature=0.0", "masking.ratio=0.5")
    (batch,) = random_batches(4)
    for _ in range(2):
        with torch.no_grad():
            seen = trainer.unwrapped_generator.encoder.class_attention(batch.to("cpu").images)[:, :, 1:].mean(1)
        hidden = torch.zeros(4, 16, dtype=torch.bool).scatter(1, seen.topk(8).indices, True)
        assert torch.equal(trainer.draw_masks(batch, FIRST), hidden)
        for weights in trainer.unwrapped_generator.encoder.parameters():
            weights.data += 0.3 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1))


def test_a_mask_depends_on_seed_sample_pass_and_encoder_and_not_on_the_batch() -> None:
    one, other = debug_trainer("mse", KIND), debug_trainer("mse", KIND, "training.seed=1")
    other.unwrapped_generator.load_state_dict(one.unwrapped_generator.state_dict())
    (batch,) = random_batches(8)
    whole = one.draw_masks(batch, FIRST)
    assert torch.equal(whole, one.draw_masks(batch, FIRST))
    parts = [one.draw_masks(part, FIRST) for part in random_batches(8, micro_batches=2)]
    assert torch.equal(whole[0::2], parts[0])
    assert torch.equal(whole[1::2], parts[1])
    assert not torch.equal(whole, other.draw_masks(batch, FIRST))
    for parameter in one.unwrapped_generator.encoder.parameters():
        parameter.data *= 3
    assert not torch.equal(whole, one.draw_masks(batch, FIRST))


@pytest.mark.parametrize("options", [[], ["training.precision=bf16"], ["training.order=sequential"]])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_every_micro_batch_is_looked_at_once_a_step_without_gradient(
    options: list[str], micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_looks(monkeypatch)
    trainer = debug_trainer("ls_gan_p", KIND, *options)
    scalars = trainer.step(random_batches(8, micro_batches), TrainingProgress(2, 9, 0.6))
    assert all(torch.isfinite(value) for value in scalars.values())
    assert seen == [(8 // micro_batches, False, False)] * micro_batches


def test_the_mask_has_no_gradient_to_the_encoder() -> None:
    """A step under these masks is the step that is taken under the same masks from somewhere else."""
    trainers = [debug_trainer("mse", *more) for more in ([KIND], [])]
    masks = trainers[0].draw_masks(*random_batches(8), FIRST)
    trainers[1].draw_masks = lambda batch, progress: masks
    for trainer in trainers:
        trainer.step(random_batches(8), FIRST)
    states = [trainer.unwrapped_generator.state_dict() for trainer in trainers]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("kind", ["random", "grid", "block"])
def test_for_other_maskings_nothing_is_looked_at(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch_looks(monkeypatch)
    debug_trainer("mse", f"masking.kind={kind}").step(random_batches(4), FIRST)
    assert seen == []


def by_hand(attention: Tensor, grid: tuple[int, int], num_hidden: int, generator: torch.Generator) -> Tensor:
    """A masking of somebody's own that asks for attention by the name of its first parameter."""
    del generator
    return torch.zeros(grid[0] * grid[1], dtype=torch.bool).scatter(0, attention.topk(num_hidden).indices, True)


def test_a_masking_of_ones_own_is_given_attention_where_it_asks_for_it() -> None:
    own = debug_trainer("mse", "masking.kind=test_attention_masking:by_hand")
    shipped = debug_trainer("mse", KIND, "masking.temperature=0")
    (batch,) = random_batches(4)
    assert torch.equal(own.draw_masks(batch, FIRST), shipped.draw_masks(batch, FIRST))


def test_held_out_images_keep_random_masks_that_no_encoder_moves(tmp_path: Path) -> None:
    config = debug_config("mse", KIND, "training.epochs=1", "training.epoch_images=16")
    (batch,) = random_batches(4)
    masks = [build.build_fixed_masks(each.masking, (4, 4), 0, 0.75)(batch) for each in (config, debug_config("mse"))]
    assert torch.equal(*masks)
    expected = random((4, 4), num_hidden(16, 0.75), stream("evaluation mask", 0, 0))
    assert torch.equal(masks[0][0], expected)
    pretrain(config, tmp_path / "run", quiet=True)
    run = Run(tmp_path / "run")
    found = evaluate_run(run, open_held_out(run.config, limit=4), make_accelerator(run.config), metrics="psnr")
    assert (found.report["mask"]["kind"], found.report["mask"]["options"]) == ("random", {})
    assert run.config.masking.kind == "attention"


def test_a_run_stopped_and_resumed_equals_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = debug_config("mse", KIND, "training.epoch_images=32")
    seen: list[Tensor] = []
    view = Trainer.view

    def watched(self: Trainer, *arguments: object) -> object:
        made = view(self, *arguments)
        seen.append(made.mask)
        return made

    monkeypatch.setattr(Trainer, "view", watched)
    pretrain(config, tmp_path / "unbroken", quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted, match="after step 3"):
            pretrain(config, tmp_path / "resumed", quiet=True)
    pretrain(config, tmp_path / "resumed", quiet=True)
    whole, parts = trained(tmp_path / "unbroken"), trained(tmp_path / "resumed")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert all(torch.equal(one, other) for one, other in zip(seen[:8], seen[8:], strict=True))
