"""`pmae visualize`: a sheet of reconstructions, or of attention, of held-out images or of one's own."""

import hashlib
import re
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import Tensor

from perceptual_mae.config import build
from perceptual_mae.data.decoding import UnreadableImageError, read_image
from perceptual_mae.data.loading import Batch, evaluation_batches
from perceptual_mae.data.subsets import random_subset
from perceptual_mae.errors import UserError, user_mistakes
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.run.folder import tell_apart
from perceptual_mae.run.run import Run
from perceptual_mae.visualization.attention import attention_columns
from perceptual_mae.visualization.image_grid import reconstruction_columns, save, sheet

View = Literal["raw", "composite", "both"]
COLUMNS = ("original", "masked", "mean", "kept")
"""What no run may be called on a sheet: these columns belong to all."""
LONGEST_NAME = 100


@torch.no_grad()
def run(
    path: Path,
    images: list[Path],
    beside: list[Path],
    out: Path | None,
    count: int,
    ratio: float | None,
    seed: int | None,
    view: View | None,
    keep: float | None,
) -> None:
    """Write original | masked | raw | composite as PNG; without images of one's own, of held-out ones.

    With `keep` (a share of the attention) the columns are original | mean | heads... | kept instead. Runs `beside` the
    first see its images under its masks, and each has its columns under its folder's name.
    """
    runs = [Run(folder) for folder in (path, *beside)]
    first = runs[0]
    batch, told = own_images(first, images) if images else (held_out_images(first, count), "")
    generators = [opened.generator() for opened in runs]
    check_alike(runs, generators)
    batch = batch.to(torch.device("cpu"))
    names = tell_apart([opened.path for opened in runs], COLUMNS) if beside else [""]
    if keep is not None:
        columns = attention_sheet(batch.images, dict(zip(names, generators, strict=True)), keep)
        about = f"the last layer's class token, kept patches hold {keep:g} of its attention to patches"
    else:
        ratio, seed, view = (
            build.final_ratio(first.config.masking) if ratio is None else ratio,
            seed or 0,
            view or "both",
        )
        masks = user_mistakes(
            lambda: build.build_fixed_masks(first.config.masking, generators[0].grid, seed, ratio)(batch)
        )
        columns = reconstruction_sheet(batch.images, masks, dict(zip(names, generators, strict=True)), view)
        about = f"ratio {ratio:g}, mask seed {seed}" + (f", {view} of each run" if beside and view != "both" else "")
    out = out or default_path(first, names[1:], "visualize" if keep is None else "attention")
    save(sheet(columns), out)
    lines = [f"{out}: {len(batch.images)} images, {about}"]
    lines += [told] if told else []
    if keep is not None:
        lines.append("each map is coloured from 0 to its own largest patch")
    elif any(one.norm_pix for one in generators):
        lines.append("* norm_pix: patches are un-normalised with the true patch's mean and deviation")
    console = Console(soft_wrap=True)
    for line in lines:
        console.print(line, highlight=False, markup=False)


def reconstruction_sheet(
    images: Tensor, masks: Tensor, generators: dict[str, MaskedAutoencoder], view: View
) -> dict[str, Tensor]:
    """Return the columns of reconstructions; those of several runs have the run's name, which "" leaves out."""
    columns: dict[str, Tensor] = {}
    for name, one in generators.items():
        for kind, pictures in reconstruction_columns(images, one(images, masks)).items():
            if kind not in ("raw", "composite"):
                columns[kind] = pictures
            elif view in (kind, "both"):
                label = kind if not name else name if view != "both" else f"{name} {kind}"
                columns[f"{label} *" if one.norm_pix else label] = pictures
    return columns


def attention_sheet(images: Tensor, generators: dict[str, MaskedAutoencoder], keep: float) -> dict[str, Tensor]:
    """Return the columns of attention over whole images; those of several runs have the run's name."""
    columns: dict[str, Tensor] = {}
    for name, one in generators.items():
        for kind, pictures in attention_columns(images, one.encoder.class_attention(images), one.grid, keep).items():
            columns[kind if kind == "original" or not name else f"{name} {kind}"] = pictures
    return columns


def default_path(first: Run, others: list[str], kind: str) -> Path:
    """Return where a sheet goes: images/ of the first run, under a name that says which runs are beside it."""
    names = re.sub(r"[^\w.+-]", "-", "_".join(others))
    if len(names) > LONGEST_NAME:
        names = f"{len(others)}_runs_{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    return first.path / "images" / f"{kind}_{first.step:08d}{f'_beside_{names}' if names else ''}.png"


def check_alike(runs: list[Run], generators: list[MaskedAutoencoder]) -> None:
    """Refuse to draw runs side by side whose images or patches differ."""
    generator = generators[0]
    for opened, other in zip(runs[1:], generators[1:], strict=True):
        if (other.image_size, other.channels, other.grid) != (generator.image_size, generator.channels, generator.grid):
            raise UserError(
                f"{opened.path}: its images have {_describe(other)}, those of {runs[0].path} {_describe(generator)}; "
                "runs are drawn side by side where they are the same"
            )


def _describe(generator: MaskedAutoencoder) -> str:
    height, width = generator.image_size
    rows, columns = generator.grid
    return f"{generator.channels} channels, {height}x{width} pixels and {rows}x{columns} patches"


def held_out_images(opened: Run, count: int) -> Batch:
    """Return held-out images of the run's data set, those of the grids in its images/."""
    dataset = opened.config.data.build(opened.config.evaluation.split)
    transform = build.build_evaluation_transform(opened.config.data)
    chosen = random_subset(len(dataset), count)
    return next(evaluation_batches(dataset, transform, batch_size=count, indices=chosen))


def own_images(opened: Run, paths: list[Path]) -> tuple[Batch, str]:
    """Return image files prepared as the run prepares held-out images, and what was done to them in words.

    The mask of each depends on its place. Raises UserError with a line for each file that cannot be read.
    """
    transform = build.build_evaluation_transform(opened.config.data)
    height, width = transform.size
    images, changed, mistakes = list[Tensor](), list[str](), list[str]()
    for path in paths:
        try:
            image = read_image(path)
        except UnreadableImageError as failure:
            mistakes.append(f"{path}: cannot be read ({failure.reason}); give another image file or leave it out")
            continue
        if image.shape[-2:] != (height, width):
            changed.append(f"{path.name} {image.shape[-2]}x{image.shape[-1]}")
        images.append(transform(image))
    if mistakes:
        raise UserError("\n".join(mistakes))
    scaled = f"shorter side {transform.resize}" if transform.resize else "just covering the crop"
    told = f"scaled ({scaled}) and cropped in the middle to {height}x{width}: {', '.join(changed)}" if changed else ""
    places = torch.arange(len(paths))
    return Batch(torch.stack(images), torch.full_like(places, -1), places, torch.zeros_like(places), ()), told
