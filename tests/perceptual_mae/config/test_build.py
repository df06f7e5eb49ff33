"""From configurations to parts: the presets have the sizes they state, masks follow their schedule."""

from pathlib import Path

import pytest
import torch

from conftest import debug_config, generator_of, random_batches, recipes_and_methods, without_weights
from perceptual_mae.config import build
from perceptual_mae.config.layers import merge_layers, read_yaml
from perceptual_mae.config.parsing import load_config, parse_config, to_yaml
from perceptual_mae.generator.masked_autoencoder import count_parameters
from perceptual_mae.loss_networks import LIVE
from perceptual_mae.schedules import TrainingProgress, learning_rate

COUNTS = {"imagenet": (111_655_680, 111_907_840), "imagenet_vit_l": (329_239_296, 329_541_888)}


@pytest.mark.parametrize("recipe", COUNTS)
def test_the_imagenet_presets_have_the_published_sizes(recipe: str) -> None:
    config = load_config([recipe, "ls_gan_p"])
    with torch.device("meta"):
        generator = generator_of(config)
        discriminator = build.build_discriminator(config.discriminator, config.data.image, config.training.seed)
    assert count_parameters(generator) == COUNTS[recipe]
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 6_962_369


@pytest.mark.parametrize(("recipe", "method"), recipes_and_methods())
def test_every_recipe_goes_with_every_method_round_trips_and_builds(recipe: str, method: str, tmp_path: Path) -> None:
    config = load_config([recipe, *without_weights(method)])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert merge_layers([str(path)]).values == read_yaml(path)  # so a file of it may be given as a layer
    assert parse_config(read_yaml(path)) == config
    without_gan_in_name = ("official_code", "recommended", "projected_p")
    assert (config.discriminator is None) == ("gan" not in method and method not in without_gan_in_name)
    assert config.generator.norm_pix == (method == "mse_norm_pix")
    with torch.device("meta"):
        encoder = generator_of(config).encoder
        discriminator = build.build_discriminator(
            config.discriminator, config.data.image, config.training.seed, encoder
        )
        assert (discriminator is None) == (config.discriminator is None)
        networks = build.build_loss_networks(config.losses, config.data.image, discriminator, config.training.seed)
    lines = build.build_objective(config.losses, config.training.log_every).lines
    assert lines.keys() == dict(config.losses.items()).keys()
    assert {line.network for line in lines.values()} <= {LIVE, *networks.fixed, *networks.copies}


def test_two_methods_start_from_the_same_generator_and_see_the_same_masks() -> None:
    one, other = debug_config("mse"), debug_config("ls_gan_p")
    states = [generator_of(config).state_dict() for config in (one, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    masks = [
        build.build_training_masks(config.masking, (4, 4), config.training.seed)(
            random_batches(4)[0], TrainingProgress(1, 0, 0.0)
        )
        for config in (one, other)
    ]
    assert torch.equal(*masks)


def test_building_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    generator_of(debug_config("mse"))
    assert torch.equal(torch.rand(1), expected)


def test_the_masking_ratio_follows_its_ramp_with_exact_counts() -> None:
    config = debug_config("mse", "masking.ratio={from: 0.5, to: 0.75, over: 0.5}")
    masks = build.build_training_masks(config.masking, (4, 4), config.training.seed)
    hidden = {
        progress: masks(random_batches(3)[0], TrainingProgress(1, 0, progress)).sum(1).tolist()
        for progress in (0, 0.25, 1)
    }
    assert hidden == {0: [8] * 3, 0.25: [10] * 3, 1: [12] * 3}
    assert build.final_ratio(config.masking) == 0.75


def test_a_mask_depends_on_sample_and_pass_and_not_on_the_batch() -> None:
    masks = build.build_training_masks(debug_config("mse").masking, (4, 4), debug_config("mse").training.seed)
    progress = TrainingProgress(1, 0, 0.0)
    whole = masks(random_batches(8)[0], progress)
    parts = [masks(batch, progress) for batch in random_batches(8, micro_batches=2)]
    assert torch.equal(whole[0::2], parts[0])
    assert torch.equal(whole[1::2], parts[1])


def test_fixed_masks_stay_the_same_at_every_evaluation() -> None:
    masks = [
        build.build_fixed_masks(debug_config("mse").masking, (4, 4), seed, 0.75)(random_batches(4)[0])
        for seed in (0, 0, 1)
    ]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.0), (20, 7.5e-5), (40, 1.5e-4), (170, 7.5e-5), (300, 0.0)])
def test_the_learning_rate_warms_up_and_falls_as_the_papers_does(epoch: int, expected: float) -> None:
    rate = learning_rate(epoch, peak=1.5e-4, floor=0.0, warmup_steps=40, total_steps=300)
    assert rate == pytest.approx(expected, abs=1e-12)


def test_a_half_life_of_5000_images_at_batch_16_is_the_published_decay() -> None:
    assert build.ema_decay(load_config(["training.ema_kimg=5"]).training) == pytest.approx(0.997784, abs=1e-6)
    assert build.ema_decay(load_config([]).training) is None


def test_the_timetable_turns_epochs_into_steps() -> None:
    config = load_config(["imagenet", "mse", "training.epochs=300"])
    timetable = build.build_timetable(config.schedule, config.training.epochs, 100)
    assert (timetable.total_steps, timetable.warmup_steps) == (30_000, 4_000)
    assert [timetable.progress(step).epoch for step in (0, 99, 100, 29_999)] == [1, 1, 2, 300]
