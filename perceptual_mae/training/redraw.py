"""The training batch of a step, drawn again: its images and masks as the run had them, and what is in its pixels."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceptual_mae.config import build
from perceptual_mae.config.from_signature import refuse_untrusted
from perceptual_mae.data.dataset import file_name
from perceptual_mae.data.loading import TrainLoader
from perceptual_mae.errors import UserError
from perceptual_mae.files import write_json
from perceptual_mae.images import mask_image
from perceptual_mae.run.folder import read_config
from perceptual_mae.visualization.image_grid import GREY, save, sheet


def redraw_batch(run: Path, step: int, out: Path, *, trust_code: bool = False) -> dict[str, Any]:
    """Write the batch of a run's step, counted from 0, to a folder: batch.png and batch.json; return the latter.

    Images and masks are functions of the seed and the step, so neither weights nor a checkpoint are needed; a masking
    that depends on the encoder in training is left out. Raises UserError for a step that the run does not have.
    """
    config = read_config(run, trust_code=trust_code)
    refuse_untrusted(config)
    dataset = config.data.build("train")
    plan = build.build_plan(config.training, len(dataset))
    timetable = build.build_timetable(config.schedule, config.training.epochs, plan.steps_per_epoch)
    if not 0 <= step < timetable.total_steps:
        raise UserError(f"STEP is {step}, but {run} has steps 0 to {timetable.total_steps - 1}; name one of them")
    transform, seed = build.build_train_transform(config.data), config.training.seed
    loader = TrainLoader(dataset, transform, plan, seed=seed, workers=0)
    progress = timetable.progress(step)
    (batch,) = next(loader.epoch(progress.epoch, step % plan.steps_per_epoch))
    images = batch.to("cpu").images
    columns = {"original": images.nan_to_num(0.0).clamp(0, 1)}
    if not config.masking.reads_attention:
        with torch.device("meta"):
            grid = build.build_generator(config.generator, config.data.image, seed).grid
        mask = build.build_training_masks(config.masking, grid, seed)(batch, progress)
        hidden = mask_image(mask, grid, (images.shape[2], images.shape[3]))
        columns["masked"] = torch.lerp(columns["original"], torch.full_like(images, GREY), hidden)
    samples = zip(batch.indices.tolist(), batch.passes.tolist(), batch.labels.tolist(), images, strict=True)
    report = {
        "step": step,
        "epoch": progress.epoch,
        "images": [
            {"index": index, "pass": one_pass, "label": label, "file": file_name(dataset, index), **_pixels(image)}
            for index, one_pass, label, image in samples
        ],
        "unreadable": [f"{path}: {reason}" for path, reason in batch.unreadable],
    }
    out.mkdir(parents=True, exist_ok=True)
    save(sheet(columns, [str(index) for index in batch.indices.tolist()]), out / "batch.png")
    write_json(out / "batch.json", report)
    return report


def _pixels(image: Tensor) -> dict[str, Any]:
    """Return what there is to know of an image's pixels, in [0, 1] as the networks are given them."""
    finite = image[image.isfinite()]
    lowest, highest = (finite.min().item(), finite.max().item()) if len(finite) else (None, None)
    return {"lowest": lowest, "highest": highest, "non_finite_pixels": image.numel() - finite.numel()}
