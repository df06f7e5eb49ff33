"""Augmentation, mixing and paths: what they do, and that draws belong to samples and steps."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor, nn

from perceptual_mae.data.batch import Batch
from perceptual_mae.evaluation.finetuning.augmentation import FinetuneTransform, Mixing
from perceptual_mae.evaluation.finetuning.recipes import read_recipe
from perceptual_mae.evaluation.finetuning.training import training_loss
from perceptual_mae.seeding import stream

MEAN, STD = torch.tensor([0.6, 0.4, 0.2]), torch.tensor([0.2, 0.2, 0.2])
STILL = ["flip=0", "crop_scale=[1, 1]"]


def transform(*settings: str, size: int = 32) -> FinetuneTransform:
    return FinetuneTransform((size, size), MEAN, STD, read_recipe("mae", 12, settings))


def picture() -> Tensor:
    return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def global_states() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


def test_the_generator_alone_decides_and_nobody_elses_draws_move() -> None:
    changed, before = transform(), global_states()
    pictures = [changed(picture(), stream("augment", seed)) for seed in (1, 1, 2)]
    assert global_states() == before
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])
    assert (pictures[0].dtype, pictures[0].shape) == (torch.uint8, (3, 32, 32))


def test_erasing_fills_one_rectangle_with_noise_and_leaves_the_rest() -> None:
    only = transform("rand_augment=null", "erasing=1", "flip=0", "crop_scale=[1, 1]")
    only.crop = lambda image, generator: image  # type: ignore[assignment]
    grey = torch.full((3, 32, 32), 77, dtype=torch.uint8)
    shares = []
    for seed in range(20):
        erased = (only(grey, stream("augment", seed)) != 77).any(0)
        rows, columns = erased.any(1).nonzero().flatten(), erased.any(0).nonzero().flatten()
        box = erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert float(box.float().mean()) > 0.9  # noise may hit the grey
        shares.append(float(erased.float().mean()))
    assert 0.01 < min(shares) < max(shares) < 0.4  # timm: 2% to a third


def test_rand_augment_is_timms() -> None:
    only = transform("erasing=0")
    only.crop = lambda image, generator: image  # type: ignore[assignment]
    hints = {"translate_const": 14, "img_mean": (153, 102, 51), "interpolation": Image.Resampling.BICUBIC}
    reference = rand_augment_transform("rand-m9-mstd0.5-inc1", hints)
    source = Image.fromarray(picture().permute(1, 2, 0).numpy())
    changed = 0
    for seed in range(10):
        set_to = int(torch.randint(2**31, (), generator=stream("augment", seed)))
        random.seed(set_to)
        np.random.seed(set_to)
        expected = torch.from_numpy(np.array(reference(source))).permute(2, 0, 1)
        assert torch.equal(only(picture(), stream("augment", seed)), expected)
        changed += not torch.equal(expected, picture())
    assert changed > 5  # each of its two operations is left out half the time


@pytest.mark.parametrize("settings", [["cutmix=0"], ["mixup=0"], []], ids=["mixup", "cutmix", "both"])
def test_an_images_targets_are_the_shares_of_what_it_shows(settings: list[str]) -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    images = labels.float().view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()  # class 1 is white, class 0 black
    mixing = Mixing(read_recipe("mae", 12, [*settings, "smoothing=0"]), 2, seed=0)
    shares = []
    for step in range(20):
        mixed, targets = mixing(images, labels, step)
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets[:, 1])
        shares.append(round(float(targets[0, 0]), 4))
    assert len(set(shares)) > 10
    assert torch.equal(images[:, 0, 0, 0], labels.float())  # the originals are left alone


def test_smoothed_targets_sum_to_one_too() -> None:
    _, targets = Mixing(read_recipe("mae", 12), 10, seed=0)(torch.rand(4, 3, 8, 8), torch.tensor([1, 2, 3, 4]), 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    assert float(targets.min()) == pytest.approx(0.01)


@pytest.mark.parametrize("parts", [2, 4])
def test_how_a_batch_is_cut_changes_no_mix(parts: int) -> None:
    images, labels = torch.rand(16, 3, 8, 8), torch.arange(16)
    mixing = Mixing(read_recipe("mae", 12), 16, seed=0)
    for step in range(6):
        whole, targets = mixing(images, labels, step)
        for first in range(parts):
            part, part_targets = mixing(images[first::parts], labels[first::parts], step)
            torch.testing.assert_close(part, whole[first::parts])
            torch.testing.assert_close(part_targets, targets[first::parts])


class Fixed(nn.Module):
    """A network that answers every image with the same logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor, drop_path_masks: Tensor | None = None) -> Tensor:
        return self.logits.expand(len(images), -1)


def test_labels_are_smoothed_once_under_mixing_and_smoothed_without_it() -> None:
    recipe = read_recipe("mae", 12)
    logits = torch.linspace(-2, 2, 10)
    surprise = -logits.log_softmax(0)
    labels = torch.tensor([1, 2, 8, 9])
    batch = Batch(torch.zeros(4, 3, 8, 8), labels, torch.arange(4), torch.ones(4))
    plain = training_loss(Fixed(logits), batch, None, recipe, None, 0)
    expected = 0.9 * surprise[labels].mean() + 0.1 * surprise.mean()
    torch.testing.assert_close(plain, expected)
    # Whatever the shares of two labels are, all four labels together weigh 0.9 and the smoothing 0.1.
    for step in range(4):
        mixed = training_loss(Fixed(logits), batch, None, recipe, Mixing(recipe, 10, 0), step)
        torch.testing.assert_close(mixed, expected)
    unsmoothed = read_recipe("mae", 12, ["smoothing=0"])
    torch.testing.assert_close(training_loss(Fixed(logits), batch, None, unsmoothed, None, 0), surprise[labels].mean())
