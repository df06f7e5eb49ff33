"""The step stays short to read: few functions in few files, and no configuration is read on the way."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from pydantic import BaseModel

from conftest import DEBUG, debug_config, debug_trainer, random_batches, slow, tiered, without_weights
from perceptual_mae.config.build import build_fixed_masks, build_training_masks
from perceptual_mae.config.layers import list_methods
from perceptual_mae.config.parsing import load_config
from perceptual_mae.schedules import TrainingProgress

ROOT = Path(__file__).parents[3]
NETWORKS_AND_LOSSES = ("discriminators", *(f"perceptual_mae/{name}" for name in ("generator", "losses", "masking")))
NETWORKS_AND_LOSSES += ("perceptual_mae/loss_networks",)
PLAIN_STEP = TrainingProgress(2, 9, 0.6)
"""Perceptual terms are on, nothing lazy is due."""


def functions_of(step: Callable[[], object]) -> set[tuple[str, str]]:
    """Return (file, name) of the named functions that run, without networks, losses, masks and what these call."""
    functions: set[tuple[str, str]] = set()
    inside = 0

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal inside
        if event == "return":
            inside = max(0, inside - 1)
        elif event == "call":
            path = Path(frame.f_code.co_filename)
            file = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else ""
            if inside or file.startswith(NETWORKS_AND_LOSSES):
                inside += 1
            elif file.startswith("perceptual_mae") and "<" not in frame.f_code.co_name:
                functions.add((file, frame.f_code.co_qualname))

    sys.setprofile(profile)
    try:
        step()
    finally:
        sys.setprofile(None)
    return functions


@pytest.mark.parametrize(("method", "most_functions", "most_files"), [("ls_gan_p", 32, 10), ("mse", 22, 8)])
def test_a_lean_step_passes_through_few_functions_in_few_files(
    method: str, most_functions: int, most_files: int
) -> None:
    trainer, batches = debug_trainer(method, "training.order=lean"), random_batches(4)
    trainer.step(batches, TrainingProgress(1, 0, 0.0))
    functions = functions_of(lambda: trainer.step(batches, PLAIN_STEP))
    assert ("perceptual_mae/training/trainer.py", "Trainer.step") in functions
    assert len(functions) <= most_functions, sorted(functions)
    assert len({file for file, _ in functions}) <= most_files, sorted({file for file, _ in functions})


def test_the_step_fits_a_screen() -> None:
    lines = (ROOT / "perceptual_mae/training/trainer.py").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("    def step("))
    end = next(number for number, line in enumerate(lines) if number > start and line.startswith("    def "))
    assert end - start <= 45


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Attributes of configuration objects that were read, as they are read."""
    read: list[str] = []

    def spied(self: BaseModel, name: str) -> Any:
        if not name.startswith("__"):
            read.append(f"{type(self).__name__}.{name}")
        return object.__getattribute__(self, name)

    def subclasses(model: type[BaseModel]) -> list[type[BaseModel]]:
        return [model, *(deeper for below in model.__subclasses__() for deeper in subclasses(below))]

    for model in subclasses(BaseModel):
        if model.__module__.startswith("perceptual_mae.config"):
            monkeypatch.setattr(model, "__getattribute__", spied, raising=False)
    return read


@pytest.mark.parametrize("order", ["lean", "sequential"])
@pytest.mark.parametrize("method", tiered(method.name for method in list_methods()))
def test_a_step_reads_no_configuration(method: str, order: str, reads: list[str]) -> None:
    trainer, batches = debug_trainer(method, f"training.order={order}"), random_batches(4)
    assert reads  # building does
    reads.clear()
    for progress in (TrainingProgress(1, 0, 0.0), PLAIN_STEP):
        trainer.step(batches, progress)
    assert reads == []


def test_a_mask_draw_reads_no_configuration(reads: list[str]) -> None:
    config = debug_config("mse", "masking.ratio={from: 0.5, to: 0.75}")
    training = build_training_masks(config.masking, (4, 4), config.training.seed)
    fixed = build_fixed_masks(config.masking, (4, 4), config.evaluation.seed)
    reads.clear()
    (batch,) = random_batches(4)
    training(batch, PLAIN_STEP), fixed(batch)
    assert reads == []


@pytest.mark.parametrize("method", ["ls_gan_p", slow("msg_gan_p"), slow("stylegan2_ada_p")])
def test_a_discriminator_is_few_files_away_from_a_yaml_file(method: str) -> None:
    from perceptual_mae.config.build import build_discriminator

    def build() -> None:
        config = load_config([DEBUG, *without_weights(method)])
        build_discriminator(config.discriminator, config.data.image, config.training.seed)

    assert len({file for file, _ in functions_of(build)}) <= 8
