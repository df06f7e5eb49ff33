"""A frozen ImageNet network as teacher (`teacher_p`), with its real weights on real images of 32 px."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import debug_config
from perceptual_mae.data.batch import Batch
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.losses.perceptual import feature_matching
from perceptual_mae.schedules import Timetable, TrainingProgress
from perceptual_mae.training.build import build_trainer
from perceptual_mae.training.trainer import Trainer

pytestmark = pytest.mark.data

STEPS = 60
NETWORK = "losses.feature_matching.network"
LAYERS = "[features.1, features.4, features.7, features.12]"


@pytest.fixture(scope="module")
def images(shared_data: Path) -> Tensor:
    """A hundred test images of CIFAR-10, uint8 (100, 3, 32, 32)."""
    with zipfile.ZipFile(shared_data / "cifar10_test.zip") as archive:
        name = next(name for name in sorted(archive.namelist()) if name.endswith("00.webp"))
        mosaic = torch.from_numpy(np.array(Image.open(archive.open(name)).convert("RGB")))
    return mosaic.view(10, 32, 10, 32, 3).permute(0, 2, 4, 1, 3).reshape(100, 3, 32, 32).contiguous()


@pytest.fixture(scope="module")
def weights(shared_data: Path) -> str:
    return str(shared_data / "nets/imagenet_squeezenet1_0_fp16.safetensors")


def teacher_trainer(weights: str, *options: str) -> Trainer:
    teacher = [f"{NETWORK}.name=squeezenet1_0", f"{NETWORK}.layers={LAYERS}", f"{NETWORK}.weights={weights}"]
    config = debug_config("teacher_p", *teacher, f"{NETWORK}.sha256=a5a970aa", "generator.patch_size=4", *options)
    return build_trainer(config, make_accelerator(config, training=True), Timetable(STEPS, STEPS, 3))


def train(trainer: Trainer, images: Tensor) -> list[dict[str, float]]:
    records, zeros = [], torch.zeros(25, dtype=torch.int64)
    for step in range(STEPS):
        indices = torch.arange(25) + 25 * (step % 4)
        batch = Batch(images[indices], zeros - 1, indices, zeros + step // 4)
        scalars = trainer.step([batch], TrainingProgress(1, step, step / STEPS))
        records.append({name: float(value) for name, value in scalars.items()})
    return records


def distance(trainer: Trainer, teacher: torch.nn.Module, images: Tensor) -> float:
    """How far reconstructions under masks of their own are from the images, as the teacher sees them."""
    numbers = torch.arange(100)
    batch = Batch(images, numbers, numbers, numbers - numbers + 99)
    real = batch.to("cpu").images
    with torch.no_grad():
        fake = trainer.unwrapped_generator(real, trainer.draw_masks(batch, TrainingProgress(1, 0, 0.0))).pyramid[0]
        return float(feature_matching(teacher(fake), teacher(real)))


@pytest.mark.exhaustive
def test_the_loss_falls_further_than_by_l1_alone_and_the_teacher_stays_as_it_was(images: Tensor, weights: str) -> None:
    trainer = teacher_trainer(weights)
    (teacher,) = trainer.networks.fixed.values()
    assert not teacher.is_random
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    records = train(trainer, images)
    for name, share in (("raw/feature_matching", 0.92), ("raw/l1", 0.8)):
        first, last = (sum(step[name] for step in part) / 8 for part in (records[:8], records[-8:]))
        assert last < share * first, name
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    without = teacher_trainer(weights, "losses.feature_matching=null", "losses.l1.weight=1.0")
    train(without, images)
    assert distance(trainer, teacher, images) < 0.97 * distance(without, teacher, images)


def test_at_32_pixels_its_layers_are_13_6_3_and_1_pixels_wide(images: Tensor, weights: str) -> None:
    """The network needs no other size, but its deepest layer then sees an image as one place."""
    (teacher,) = teacher_trainer(weights).networks.fixed.values()
    features = teacher(images[:2].float() / 255)
    assert [tuple(layer.shape[1:]) for layer in features] == [(96, 13, 13), (128, 6, 6), (256, 3, 3), (512, 1, 1)]
    assert all(layer.std() > 0 for layer in features)
