"""`pmae visualize`: a sheet of reconstructions of held-out images or of one's own."""

from pathlib import Path

import torch
from rich.console import Console

from perceptual_mae import build
from perceptual_mae.data.decoding import UnreadableImageError, read_image
from perceptual_mae.data.loading import Batch, evaluation_batches
from perceptual_mae.errors import UserError
from perceptual_mae.grids import reconstruction_columns, save, sheet
from perceptual_mae.run import Run


@torch.no_grad()
def run(path: Path, images: list[Path], out: Path | None, count: int, ratio: float | None, seed: int) -> None:
    """Write original | masked | raw | composite as PNG; without images of one's own, the first held-out ones."""
    opened = Run(path)
    generator = opened.generator()
    batch = own_images(opened, images) if images else held_out_images(opened, count)
    ratio = build.final_ratio(opened.config) if ratio is None else ratio
    masks = build.user_mistakes(lambda: build.FixedMasks(opened.config, generator.grid, seed, ratio)(batch))
    batch = batch.to(torch.device("cpu"))
    columns = reconstruction_columns(batch.images, generator(batch.images, masks))
    if generator.norm_pix:
        columns = {f"{name} *" if name in ("raw", "composite") else name: view for name, view in columns.items()}
    out = out or opened.path / "images" / f"visualize_{opened.step:08d}.png"
    save(sheet(columns), out)
    console = Console(soft_wrap=True)
    console.print(
        f"{out}: {len(batch.images)} images, ratio {ratio:g}, mask seed {seed}", highlight=False, markup=False
    )
    if generator.norm_pix:
        console.print("* norm_pix: patches are un-normalised with the true patch's mean and deviation")


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
