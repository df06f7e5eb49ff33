"""Paths through the encoder: how often they close, and whose they are."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from conftest import debug_config, debug_trainer, random_batches
from perceptual_mae import Run, pretrain
from perceptual_mae.data.batch import Batch
from perceptual_mae.data.draws import DropPathMasks
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.generator.reconstruction import Reconstruction
from perceptual_mae.run.signals import Interrupted
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.trainer import Trainer

DROPS = "generator.drop_path=0.6"


def batch_of(indices: list[int], one_pass: int = 1) -> Batch:
    numbers = torch.tensor(indices)
    return Batch(torch.zeros(len(indices), 3, 1, 1), numbers, numbers, torch.full_like(numbers, one_pass))


def collected(trainer: Trainer) -> list[torch.Tensor | None]:
    """Collect the paths that the generator is handed."""
    seen: list[torch.Tensor | None] = []
    trainer.unwrapped_generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    return seen


def test_paths_close_more_often_deeper_down_and_keep_their_mean() -> None:
    paths = DropPathMasks(0.3, 4, seed=0)(batch_of(list(range(4000))))
    assert paths is not None
    assert paths.shape == (4000, 4, 2)
    for block, rate in enumerate((0.0, 0.1, 0.2, 0.3)):
        closed = (paths[:, block] == 0).float().mean(0)
        deviation = 3 * (rate * (1 - rate) / 4000) ** 0.5
        assert closed.tolist() == pytest.approx([rate, rate], abs=deviation + 1e-9)
        assert float(paths[:, block].max()) == pytest.approx(1 / (1 - rate))


def test_paths_belong_to_samples_passes_and_seeds() -> None:
    draw = DropPathMasks(0.5, 6, seed=0)
    whole, part = draw(batch_of([4, 9, 2, 7])), draw(batch_of([9, 7]))
    assert whole is not None
    assert torch.equal(whole[[1, 3]], part)
    assert not torch.equal(whole, DropPathMasks(0.5, 6, seed=1)(batch_of([4, 9, 2, 7])))
    assert not torch.equal(whole, draw(batch_of([4, 9, 2, 7], one_pass=2)))


def test_a_step_hands_each_image_its_own_paths() -> None:
    trainer = debug_trainer("mse", DROPS)
    seen = collected(trainer)
    (batch,) = random_batches(6)
    trainer.step([batch], TrainingProgress(1, 1, 0.1))
    assert torch.equal(seen[0], DropPathMasks(0.6, 2, seed=0)(batch))
    assert (seen[0] == 0).any()


@pytest.mark.parametrize("method", ["mse", pytest.param("ls_gan_p", marks=pytest.mark.slow)])
@pytest.mark.parametrize("order", ["lean", "sequential"])
def test_micro_batches_with_closed_paths_equal_one_batch(method: str, order: str) -> None:
    states = []
    for micro_batches in (1, 2):
        trainer = debug_trainer(method, DROPS, f"training.order={order}", dtype=torch.float64)
        for step in range(3):
            trainer.step(random_batches(8, micro_batches, seed=step), TrainingProgress(1 + step // 2, step, step / 16))
        states.append(trainer.unwrapped_generator.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_a_repeated_forward_takes_the_same_paths() -> None:
    trainer = debug_trainer("ls_gan_p", DROPS, "training.order=sequential")
    seen, made = collected(trainer), list[torch.Tensor]()

    def keep(_: object, __: object, output: Reconstruction) -> None:
        made.append(output.pyramid[0].detach())

    trainer.unwrapped_generator.register_forward_hook(keep)
    trainer.step(random_batches(8, 2), TrainingProgress(1, 1, 0.1))
    assert len(seen) == 4  # two micro-batches in each half
    for half in range(2):
        assert torch.equal(seen[half], seen[half + 2])
        torch.testing.assert_close(made[half], made[half + 2])


def test_path_length_takes_the_paths_of_its_half() -> None:
    trainer = debug_trainer("stylegan2_ada_p", DROPS)
    seen = collected(trainer)
    trainer.step(random_batches(6), TrainingProgress(1, 4, 0.1))
    assert [len(paths) for paths in seen] == [6, 3]
    assert torch.equal(seen[0][:3], seen[1])


def test_without_a_rate_nothing_is_drawn() -> None:
    assert debug_trainer("mse").draw_drop_path_masks is None
    assert debug_trainer("mse", DROPS).draw_drop_path_masks is not None


def test_without_paths_nothing_is_closed_and_training_mode_decides_nothing() -> None:
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 2, "heads": 2, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
    generator = MaskedAutoencoder((32, 32), 3, [0.5] * 3, [0.2] * 3, patch_size=8, **sizes, drop_path=0.9)
    images, mask = torch.rand(2, 3, 32, 32), torch.arange(16).expand(2, -1) < 12
    training, whole = generator(images, mask).pyramid[0], generator.encoder(images)
    open_paths = generator(images, mask, torch.ones(2, 2, 2)).pyramid[0]
    torch.testing.assert_close(open_paths, training)
    assert torch.equal(generator.eval()(images, mask).pyramid[0], training)
    assert torch.equal(generator.encoder(images), whole)
    closed = generator(images, mask, torch.zeros(2, 2, 2)).pyramid[0]
    assert not torch.allclose(closed, training, atol=1e-3)


def test_paths_of_another_shape_are_refused() -> None:
    generator = debug_trainer("mse").unwrapped_generator
    with pytest.raises(ValueError, match=r"expected drop_path_masks \(2, 2, 2\), got \(2, 3, 2\)"):
        generator(torch.rand(2, 3, 32, 32), torch.arange(16).expand(2, -1) < 12, torch.ones(2, 3, 2))


@pytest.mark.slow
def test_a_run_with_closed_paths_resumes_exactly_and_is_scored_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = debug_config("mse", DROPS)
    whole = pretrain(config, tmp_path / "whole", quiet=True)
    seen = []
    original = MaskedAutoencoder.forward

    def watched(self: MaskedAutoencoder, images: torch.Tensor, mask: torch.Tensor, paths: torch.Tensor | None = None):
        if not images.is_meta:  # the estimate of memory
            seen.append((torch.is_grad_enabled(), paths is not None))
        return original(self, images, mask, paths)

    monkeypatch.setattr(MaskedAutoencoder, "forward", watched)
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(Interrupted, match="after step 2"):
            pretrain(config, tmp_path / "parts", quiet=True)
    parts = pretrain(config, tmp_path / "parts", quiet=True)
    assert parts == whole
    states = [Run(tmp_path / name).generator().state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert set(seen) == {(True, True), (False, False)}  # while training, while scoring


def stop_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """Let a signal arrive while a step, counted from 0, is under way."""
    step = Trainer.step

    def interrupted(self: Trainer, batches: Sequence[Batch], progress: TrainingProgress) -> dict[str, torch.Tensor]:
        if progress.step == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batches, progress)

    patch.setattr(Trainer, "step", interrupted)
