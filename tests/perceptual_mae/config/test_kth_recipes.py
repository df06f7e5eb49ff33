"""The two recipes of the KTH study: their sizes by hand, their schedule, and that they train."""

from pathlib import Path

import pytest
import torch

from conftest import generator_of, halved
from perceptual_mae import Run, pretrain
from perceptual_mae.config.build import build_plan, build_timetable, generator_adam
from perceptual_mae.config.parsing import load_config
from perceptual_mae.data.cifar10 import Cifar10
from perceptual_mae.generator.masked_autoencoder import count_parameters

RECIPES = {"cifar10_kth_small": (128, 3, 64, 1), "cifar10_kth_medium": (256, 4, 128, 2)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_generator_has_the_parameters_that_its_sizes_come_to(recipe: str) -> None:
    width, depth, decoder_width, decoder_depth = RECIPES[recipe]
    with torch.device("meta"):
        generator = generator_of(load_config([recipe, "mse"]))

    def blocks(width: int, depth: int) -> int:  # 4 + 2 x 2 squares; biases of qkv, proj and MLP, and two norms
        return depth * (8 * width**2 + (3 + 1 + 2 + 1 + 4) * width)

    encoder = blocks(width, depth) + width * 48 + width + width + 2 * width
    decoder = blocks(decoder_width, decoder_depth) + (width + 1) * decoder_width + 3 * decoder_width
    assert count_parameters(generator)[0] == encoder + decoder + (decoder_width + 1) * 48


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_rate_rises_over_a_fifth_of_the_steps_and_ends_at_a_hundredth(recipe: str) -> None:
    config = load_config([recipe, "mse"])
    timetable = build_timetable(
        config.schedule, config.training.epochs, build_plan(config.training, 40_000).steps_per_epoch
    )
    peak, betas = generator_adam(config.optimizer, config.training.batch_size, None)
    rate = timetable.rate(peak, config.schedule.min_lr)
    assert (timetable.total_steps, timetable.warmup_steps) == (15_600, 3_120)
    assert (peak, betas) == (1e-3, (0.9, 0.999))
    assert rate(3_120) == pytest.approx(1e-3)
    assert rate(15_600) == pytest.approx(1e-5)


@pytest.mark.data
@pytest.mark.parametrize("recipe", halved(RECIPES))
def test_it_trains_on_a_few_images_of_cifar10(recipe: str, cifar10: Path, tmp_path: Path) -> None:
    few = ["training.epochs=2", "training.epoch_images=512", "evaluation.every=0", "evaluation.limit=64"]
    few.append("evaluation.probe_images=64")
    config = load_config([recipe, "mse", *few, f"data.root={cifar10}", "data.workers=0", "training.log_every=1"])
    pretrain(config, tmp_path / "run", quiet=True)
    losses = [record["weighted"]["mse"] for record in Run(tmp_path / "run").metrics() if "weighted" in record]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    facts = Run(tmp_path / "run").checkpoint / "state.json"
    assert '"training_images": 40000' in facts.read_text()
    train, held_out = (Cifar10(split, root=str(cifar10), val_images=10_000) for split in ("train", "val"))
    assert (len(train), len(held_out)) == (40_000, 10_000)
