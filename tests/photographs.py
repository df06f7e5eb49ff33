"""Folders of photographs for tests of what cannot be read, and runs on them."""

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from conftest import DEBUG
from perceptual_mae.cli import main
from perceptual_mae.data.epoch_order import EpochPlan
from perceptual_mae.data.image_folder import ImageFolder
from perceptual_mae.run.run import Run


def photos(root: Path, each: int = 24) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    return root


def arguments(root: Path, *options: str) -> list[str]:
    data = ", ".join((f"kind: image_folder, root: {root}, image_size: 32, size: null, num_images: null", *options))
    return ["pretrain", DEBUG, "mse", f"data={{{data}}}", "training.epochs=1"]


class Spoilt:
    """A run on photos of which two in its second batch have whole headers and cut pixels: one more than is let pass."""

    def __init__(self, folder: Path) -> None:
        self.root, self.run = photos(folder / "photos"), folder / "run"
        self.whole = shutil.copytree(self.root, folder / "whole")
        train = ImageFolder("train", root=str(self.root), holdout=0.2)
        second = EpochPlan(len(train), 8, epoch_images=32, seed=0).batch(1, 1)
        self.cut = [train.file_path(index) for _, index in second[2:4]]
        for path in self.cut:
            path.write_bytes(path.read_bytes()[:2000])

    def train(self, share: float = 0.04, name: str = "run", *more: str) -> int:
        asked = [*arguments(self.root, "holdout: 0.2", f"max_unreadable: {share}"), "training.seed=0", *more]
        return main([*asked, "training.epoch_images=32", "--out", str(self.run.with_name(name))])

    def repair(self) -> None:
        for path in self.cut:
            shutil.copy(self.whole / path.relative_to(self.root), path)

    def weights(self, name: str = "run") -> dict[str, torch.Tensor]:
        assert Run(self.run.with_name(name)).step == 4
        return Run(self.run.with_name(name)).generator().state_dict()

    def equals_unbroken(self) -> bool:
        """Whether the run came to the weights of one that let more files pass, and was never stopped."""
        assert self.train(0.2, "unbroken") == 0
        ends = self.weights(), self.weights("unbroken")
        return all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
