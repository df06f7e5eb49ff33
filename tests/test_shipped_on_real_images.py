"""Every recipe and every method that is shipped trains on real images, by the command that a user types."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import halved
from foreign_networks import BASE, write_mae
from perceptual_mae.cli import main
from perceptual_mae.config.layers import list_methods, list_recipes

ROOT = Path(__file__).parents[1]
METHODS = [method.name for method in list_methods()]
RECIPES = [recipe.name for recipe in list_recipes() if recipe.name != "quickstart"]  # on drawn shapes: its own test
STEPS = [
    *("training.log_every=1", "data.workers=0"),
    *("evaluation.every=0", "evaluation.limit=2", "evaluation.batch_size=2", "evaluation.probe_images=20"),
]
NEEDED = {
    "dvae_p": ["losses.feature_matching.network.weights=random", "losses.style.network.weights=random"],
    "vgg_p": ["losses.feature_matching.network.weights=random", "losses.style.network.weights=random"],
    "teacher_p": [
        "losses.feature_matching.network.name=squeezenet1_0",
        "losses.feature_matching.network.layers=[features.4, features.7]",
        "losses.feature_matching.network.weights={nets}/imagenet_squeezenet1_0_fp16.safetensors",
    ],
    "projected_p": [
        "discriminator.network.weights={nets}/imagenet_squeezenet1_0_fp16.safetensors",
        "losses.feature_matching.network.weights={nets}/imagenet_squeezenet1_0_fp16.safetensors",
    ],
    "vqgan_p": ["losses.feature_matching.network.weights=random"],
}
ON_IMAGENET = ("imagenet", "imagenet_fast", "imagenet_vit_l", "sharpen_published")
SHORTER = {
    "imagenet_vit_l": ["generator.depth=2"],  # its 24 blocks with AdamW would fill 5 GB
    "imagenet_fast": ["generator.depth=2"],  # its networks are those of imagenet
}
STARTED = {"sharpen_published": BASE | {"depth": 2}}
"""Sizes of the encoder, by the recipe that starts with a published one."""


def train(words: list[str], out: Path) -> dict[str, float]:
    """Train by command; return the last recorded losses."""
    assert main(["pretrain", *words, *STEPS, "--out", str(out)]) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last: dict[str, float] = [record["raw"] for record in records if "raw" in record][-1]
    return last


@pytest.mark.data
@pytest.mark.parametrize("method", halved(METHODS))
def test_a_method_trains_on_cifar10(method: str, cifar10: Path, shared_data: Path, tmp_path: Path) -> None:
    needed = [word.format(nets=shared_data / "nets") for word in NEEDED.get(method, [])]
    words = ["cifar10", method, *needed, f"data.root={cifar10}", "training.batch_size=4", "training.epoch_images=4"]
    words.append("training.epochs=2")  # where every term that takes turns is on
    assert train(words, tmp_path / "run")


@pytest.fixture(scope="session")
def stl10(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stl10")
    script, source = ROOT / "scripts/make_stl10_layout.py", shared_data / "wikiart_paintings.zip"
    subprocess.run([sys.executable, str(script), str(source), str(out)], check=True, capture_output=True)
    return out


@pytest.mark.data
@pytest.mark.parametrize("recipe", halved(RECIPES))
def test_a_recipe_trains_at_its_own_sizes(
    recipe: str, cifar10: Path, stl10: Path, paintings: Path, tmp_path: Path
) -> None:
    if recipe.startswith("cifar10"):
        images = [f"data.root={cifar10}"]
    elif recipe.startswith("stl10"):
        images = [f"data.root={stl10}"]
    else:
        images = [f"data.root={paintings}", *(["data.split_fractions=null"] if recipe.startswith("art") else [])]
        images += ["data.test=test", "schedule.warmup_epochs=0"] if recipe in ON_IMAGENET else []
    if sizes := STARTED.get(recipe):
        write_mae(tmp_path / "mae.pth", "pretrain", sizes)
        images += [f"generator.init_from={tmp_path / 'mae.pth'}", f"generator.depth={sizes['depth']}"]
    words = [recipe, "mse", *images, *SHORTER.get(recipe, []), "training.batch_size=2", "training.epoch_images=2"]
    words.append("training.epochs=1")
    assert train(words, tmp_path / "run").keys() == {"mse"}
