"""A tiny set of images with a colour for each class, a recipe for it, and a run to transfer."""

from pathlib import Path

import torch
import yaml
from PIL import Image

from conftest import debug_config, generator_of
from perceptual_mae import pretrain
from perceptual_mae.transfer.recipes import read_recipe
from perceptual_mae.transfer.segmentation.config import SegmentConfig
from perceptual_mae.transfer.taps import Taps, taps_of

COLORS = torch.tensor([[200, 40, 40], [40, 200, 40], [40, 40, 200]], dtype=torch.uint8)

SMALL = (
    *("data.kind=pairs", "encoder.drop_path=0.3", "head={channels: 8, auxiliary_channels: 4, norm: group}"),
    *("augment={crop: [32, 32], scale: [0.8, 1.5]}", "optimizer={lr: 2e-3, layer_decay: 0.8}"),
    *("schedule={kind: poly, steps: 6, warmup_steps: 2}", "evaluation={split: val, pictures: 1}"),
    "training={batch_size: 4, precision: no, workers: 0, log_every: 2}",
)
"""Overrides that make a recipe of seconds."""


def write_halves(root: Path, **counts: int) -> Path:
    """Write so many images of each split, 40 x 48 pixels: two classes side by side, and an ignored row below."""
    for split, count in counts.items():
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            draw = torch.Generator().manual_seed(1000 * len(split) + number)
            left, right = torch.randperm(3, generator=draw)[:2].tolist()
            edge = int(torch.randint(10, 38, (), generator=draw))
            mask = torch.full((40, 48), left, dtype=torch.uint8)
            mask[:, edge:] = right
            noise = torch.randint(-20, 21, (40, 48, 3), generator=draw)
            image = (COLORS[mask.long()] + noise).clamp(0, 255).to(torch.uint8)
            mask[-2:] = 255
            Image.fromarray(image.numpy()).save(root / split / "images" / f"{number:02}.png")
            Image.fromarray(mask.numpy()).save(root / split / "masks" / f"{number:02}.png")
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    return root


def small_config(root: Path, *overrides: str) -> SegmentConfig:
    """The recipe camvid with these images at debug size."""
    recipe = root / "halves.yaml"
    recipe.write_text("data: {kind: pairs}\n")
    config, _ = read_recipe("segment", SegmentConfig, [str(recipe), *SMALL, f"data.root={root}", *overrides])
    return config


def pretrained(path: Path, *arguments: str) -> Path:
    """Pretrain for an epoch of eight images."""
    torch.set_num_threads(1)
    few = ["training.epochs=1", "training.epoch_images=8", "evaluation.limit=4", "data.num_images=8"]
    pretrain(debug_config(*(arguments or ("mse",)), *few), path, quiet=True)
    return path


def as_vit_b(run: Path) -> Path:
    """Give a run the configuration of a ViT-B of 224 pixels; its weights stay what they are."""
    config = run / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values["data"]["image_size"] = 224
    values["generator"] |= {"size": "base", "patch_size": 16, "width": 768, "depth": 12, "heads": 12}
    config.write_text(yaml.safe_dump(values))
    return run


def taps_of_method(*arguments: str) -> Taps:
    return taps_of(generator_of(debug_config(*arguments)))
