"""Recipes of two sibling studies, Art MAE and improved MAE on STL-10: exact sizes, one budget, real images."""

from pathlib import Path

import pytest
import torch

from conftest import generator_of, halved
from perceptual_mae.config.build import generator_adam
from perceptual_mae.config.layers import find_layer, read_yaml
from perceptual_mae.config.parsing import load_config
from perceptual_mae.data.image_tree import list_images
from perceptual_mae.generator.masked_autoencoder import count_parameters
from perceptual_mae.training.loop import pretrain

# width, blocks, heads of the encoder, then of the decoder (METHOD: the studies' texts and code)
SIZES = {
    "art_model_1": (384, 6, 6, 256, 2, 4),
    "art_model_2": (192, 12, 3, 192, 4, 3),
    "art_model_3": (192, 12, 3, 512, 8, 16),
    "stl10_improved_mae": (192, 8, 6, 128, 4, 4),
}
ART = [name for name in SIZES if name.startswith("art")]


def trainable(width: int, depth: int, decoder_width: int, decoder_depth: int) -> int:
    """Weights of an MAE with patches of 16x16x3, counted from its description."""

    def block(d: int) -> int:
        norms, attention, mlp = 2 * 2 * d, (3 * d * d + 3 * d) + (d * d + d), (4 * d * d + 4 * d) + (4 * d * d + d)
        return norms + attention + mlp

    patch = 16 * 16 * 3
    encoder = (patch * width + width) + width + depth * block(width) + 2 * width
    into = (width * decoder_width + decoder_width) + decoder_width
    return encoder + into + decoder_depth * block(decoder_width) + 2 * decoder_width + decoder_width * patch + patch


@pytest.mark.parametrize("recipe", SIZES)
def test_a_studys_recipe_has_its_exact_size(recipe: str) -> None:
    config = load_config([recipe, "mse"])
    width, depth, heads, decoder_width, decoder_depth, decoder_heads = SIZES[recipe]
    with torch.device("meta"):
        generator = generator_of(config)
    expected = trainable(width, depth, decoder_width, decoder_depth)
    if recipe == "art_model_2":  # learned positions of 196 patches and the class token, no bias at q, k and v
        expected += 197 * (192 + 192) - 3 * 192 * (12 + 4)
    assert count_parameters(generator)[0] == expected
    options = config.generator.options()
    assert (options["heads"], options["decoder_heads"], options["patch_size"]) == (heads, decoder_heads, 16)
    if recipe == "art_model_3":
        assert expected == 31_200_000  # ViT-tiny with MAE's whole decoder, as published


def test_larger_stl10_images_change_positions_alone() -> None:
    with torch.device("meta"):
        small, large = (
            count_parameters(generator_of(load_config(["stl10_improved_mae", "improved_mae", *size])))
            for size in ([], ["data.image_size=224"])
        )
    assert small[0] == large[0]
    assert large[1] - small[1] == (196 - 36) * (192 + 128)


def test_art_models_share_data_and_budget_and_differ_in_the_generator_alone() -> None:
    layers = [read_yaml(find_layer(name)) for name in ART]
    for layer in layers:
        layer.pop("generator")
        assert layer == layers[0]
    config = load_config([ART[0], "mse"])
    assert config.data.options()["split_fractions"] == (0.8, 0.1, 0.1)
    assert (config.data.crop, config.data.color_jitter > 0, config.data.size) == ("center", True, (224, 224))
    assert (generator_adam(config.optimizer, 32)[0], config.optimizer.weight_decay) == (1e-4, 0.05)
    assert (config.training.epochs, config.training.batch_size, config.schedule.warmup_epochs) == (10, 32, 0)


def test_improved_mae_and_its_control_share_the_texts_budget() -> None:
    for method in ("improved_mae", "improved_mae_original"):
        config = load_config(["stl10_improved_mae", method])
        assert (generator_adam(config.optimizer, 128)[0], config.optimizer.weight_decay) == (1.5e-4, 0.05)
        assert (config.training.epochs, config.training.seed, config.data.size) == (10, 42, (96, 96))


@pytest.mark.data
@pytest.mark.parametrize("recipe", halved(ART))
def test_art_models_train_on_paintings_and_are_scored_on_others(recipe: str, paintings: Path, tmp_path: Path) -> None:
    whole = paintings / "train"  # 52 paintings of each of 7 styles
    small = ["data.image_size=64", "data.workers=0", "training.epochs=1", "training.epoch_images=64"]
    small += ["training.batch_size=16", "training.log_every=1", "training.precision=no", "evaluation.batch_size=16"]
    small.append("evaluation.probe_images=64")
    config = load_config([recipe, "mse", f"data.root={whole}", *small])
    splits = {split: config.data.build(split) for split in ("train", "val", "test")}
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 291, "val": 37, "test": 36}
    names = [dataset.file_name(index) for dataset in splits.values() for index in range(len(dataset))]
    assert sorted(names) == list_images(whole)
    for dataset in splits.values():
        by_class = [dataset.label(index) for index in range(len(dataset))]
        assert all(abs(by_class.count(label) - len(dataset) / 7) <= 1 for label in range(7))
    summary = pretrain(config, tmp_path / "run", quiet=True)
    assert (summary["steps"], summary["num_images"]) == (4, 36)
    assert 5 < summary["psnr_masked"] < 30
