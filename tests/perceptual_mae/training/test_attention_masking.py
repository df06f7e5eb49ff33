"""Masks by the encoder's attention in training: one attention pass a micro-batch, no gradient, no cost elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import debug_config, debug_trainer, random_batches
from perceptual_mae import Run, pretrain
from perceptual_mae.config import build
from perceptual_mae.config.parsing import load_config
from perceptual_mae.data.draws import TrainingMasks
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.evaluation.reconstruction.data import open_held_out
from perceptual_mae.evaluation.reconstruction.evaluate import evaluate_run
from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.masking import num_hidden, random
from perceptual_mae.run.signals import Interrupted
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.seeding import stream
from test_loop import stop_after, trained

FIRST = TrainingProgress(1, 0, 0.0)
KIND = "masking.kind=attention"


def record_attention(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool, bool]]:
    """Of every attention pass: number of images, whether gradients were enabled, whether the result requires them."""
    passes: list[tuple[int, bool, bool]] = []
    class_attention = Encoder.class_attention

    def recorded(self: Encoder, images: Tensor) -> Tensor:
        attention = class_attention(self, images)
        passes.append((len(images), torch.is_grad_enabled(), attention.requires_grad))
        return attention

    monkeypatch.setattr(Encoder, "class_attention", recorded)
    return passes


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
            attention = trainer.unwrapped_generator.encoder.class_attention(batch.to("cpu").images)[:, :, 1:].mean(1)
        hidden = torch.zeros(4, 16, dtype=torch.bool).scatter(1, attention.topk(8).indices, True)
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
def test_every_micro_batch_has_one_attention_pass_a_step_without_gradient(
    options: list[str], micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = record_attention(monkeypatch)
    trainer = debug_trainer("ls_gan_p", KIND, *options)
    scalars = trainer.step(random_batches(8, micro_batches), TrainingProgress(2, 9, 0.6))
    assert all(torch.isfinite(value) for value in scalars.values())
    assert passes == [(8 // micro_batches, False, False)] * micro_batches


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
def test_other_maskings_compute_no_attention(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = record_attention(monkeypatch)
    debug_trainer("mse", f"masking.kind={kind}").step(random_batches(4), FIRST)
    assert passes == []


def by_hand(attention: Tensor, grid: tuple[int, int], num_hidden: int, generator: torch.Generator) -> Tensor:
    """A masking of somebody's own that asks for attention by the name of its first parameter."""
    del generator
    return torch.zeros(grid[0] * grid[1], dtype=torch.bool).scatter(0, attention.topk(num_hidden).indices, True)


def test_a_masking_of_ones_own_is_given_attention_where_its_signature_asks_for_it() -> None:
    own = debug_trainer("mse", "masking.kind=test_attention_masking:by_hand")
    shipped = debug_trainer("mse", KIND, "masking.temperature=0")
    (batch,) = random_batches(4)
    assert torch.equal(own.draw_masks(batch, FIRST), shipped.draw_masks(batch, FIRST))


def test_held_out_images_keep_random_masks_whatever_the_encoder(tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_a_run_stopped_and_resumed_equals_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = debug_config("mse", KIND, "training.epoch_images=32")
    masks: list[Tensor] = []
    draw = TrainingMasks.__call__

    def recorded(self: TrainingMasks, *arguments: Any) -> Tensor:
        masks.append(draw(self, *arguments))
        return masks[-1]

    monkeypatch.setattr(TrainingMasks, "__call__", recorded)
    pretrain(config, tmp_path / "unbroken", quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted, match="after step 3"):
            pretrain(config, tmp_path / "resumed", quiet=True)
    pretrain(config, tmp_path / "resumed", quiet=True)
    whole, parts = trained(tmp_path / "unbroken"), trained(tmp_path / "resumed")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert all(torch.equal(one, other) for one, other in zip(masks[:8], masks[8:], strict=True))
