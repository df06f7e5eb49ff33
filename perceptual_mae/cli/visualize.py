"""`pmae visualize`: a sheet of reconstructions of held-out images or of one's own."""

from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import Tensor

from perceptual_mae import build
from perceptual_mae.data.decoding import UnreadableImageError, read_image
from perceptual_mae.data.loading import Batch, evaluation_batches
from perceptual_mae.errors import UserError
from perceptual_mae.generator import MaskedAutoencoder
from perceptual_mae.grids import reconstruction_columns, save, sheet
from perceptual_mae.run import Run

View = Literal["raw", "composite", "both"]


@torch.no_grad()
def run(
    path: Path,
    images: list[Path],
    beside: list[Path],
    out: Path | None,
    count: int,
    ratio: float | None,
    seed: int,
    view: View,
) -> None:
    """Write original | masked | raw | composite as PNG; without images of one's own, the first held-out ones.

    Runs `beside` the first see its images under its masks, and each has its columns under its folder's name.
    """
    runs = [Run(folder) for folder in (path, *beside)]
    generators = [opened.generator() for opened in runs]
    first, generator = runs[0], generators[0]
    for opened, other in zip(runs[1:], generators[1:], strict=True):
        if (other.image_size, other.channels, other.grid) != (generator.image_size, generator.channels, generator.grid):
            raise UserError(
                f"{opened.path}: its images have {_describe(other)}, those of {first.path} {_describe(generator)}; "
                "runs are drawn side by side where they are the same"
            )
    batch = own_images(first, images) if images else held_out_images(first, count)
    ratio = build.final_ratio(first.config) if ratio is None else ratio
    masks = build.user_mistakes(lambda: build.FixedMasks(first.config, generator.grid, seed, ratio)(batch))
    batch = batch.to(torch.device("cpu"))
    columns: dict[str, Tensor] = {}
    for name, one in zip(names_of(runs), generators, strict=True):
        views = reconstruction_columns(batch.images, one(batch.images, masks))
        for kind, pictures in views.items():
            if kind not in ("raw", "composite"):
                columns[kind] = pictures
            elif view in (kind, "both"):
                label = kind if len(runs) == 1 else name if view != "both" else f"{name} {kind}"
                columns[f"{label} *" if one.norm_pix else label] = pictures
    out = out or first.path / "images" / f"visualize_{first.step:08d}.png"
    save(sheet(columns), out)
    console = Console(soft_wrap=True)
    told = f"{out}: {len(batch.images)} images, ratio {ratio:g}, mask seed {seed}"
    if len(runs) > 1 and view != "both":
        told += f", {view} of each run"
    console.print(told, highlight=False, markup=False)
    if any(one.norm_pix for one in generators):
        console.print("* norm_pix: patches are un-normalised with the true patch's mean and deviation")


def names_of(runs: list[Run]) -> list[str]:
    """Return the names of the runs' folders, with what is above them or a number where two are alike."""
    names = [opened.path.absolute().name for opened in runs]
    if len(set(names)) < len(names):
        names = [f"{opened.path.absolute().parent.name}/{name}" for opened, name in zip(runs, names, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{number} {name}" for number, name in enumerate(names, 1)]
    return names


def _describe(generator: MaskedAutoencoder) -> str:
    height, width = generator.image_size
    rows, columns = generator.grid
    return f"{generator.channels} channels, {height}x{width} pixels and {rows}x{columns} patches"


def held_out_images(opened: Run, count: int) -> Batch:
    """Return the first held-out images of the run's data set."""
    dataset = opened.config.data.build(opened.config.evaluation.split)
    transform = build.build_evaluation_transform(opened.config)
    return next(evaluation_batches(dataset, transform, batch_size=count, limit=count))


def own_images(opened: Run, paths: list[Path]) -> Batch:
    """Return image files prepared as the run prepares held-out images; the mask of each depends on its place."""
    transform = build.build_evaluation_transform(opened.config)
    try:
        images = torch.stack([transform(read_image(path)) for path in paths])
    except UnreadableImageError as failure:
        raise UserError(str(failure)) from failure
    places = torch.arange(len(paths))
    return Batch(images, torch.full_like(places, -1), places, torch.zeros_like(places), ())
