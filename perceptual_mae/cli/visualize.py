"""`pmae visualize`: a sheet of reconstructions, or of attention, of held-out images or of image files."""

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from perceptual_mae.cli.options import Folder, TrustCode, check_run
from perceptual_mae.cli.output import print_lines
from perceptual_mae.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from perceptual_mae.data.batch import Batch
    from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
    from perceptual_mae.run.run import Run

Pictures = Literal["raw", "composite", "both"]
KEEP = 0.6
COLUMNS = ("original", "masked", "mean", "kept")
"""What no run may be called on a sheet: these columns belong to all."""
LONGEST_NAME = 100
MAPPED = 4
"""Images of which the attention of each patch is kept for the report."""


def visualize_command(
    folder: Folder,
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE", help="Image files of any size; none: held-out ones.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="PNG to write; none: in images/ of the run.")] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many held-out images.")] = 8,
    ratio: Annotated[float | None, typer.Option(min=0, max=0.999, help="Hidden share; none: the run's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of the masks; none: 0.")] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option("--beside", metavar="RUN", help="Another run on the same images and masks; repeat it."),
    ] = None,
    view: Annotated[Pictures | None, typer.Option(help="Which pictures of each run; none: both.")] = None,
    trust_code: TrustCode = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="Draw the attention of the encoder's class token, nothing hidden.")
    ] = False,
    keep: Annotated[
        float | None,
        typer.Option(min=0.001, max=1, help=f"Share of the attention that the kept patches hold; none: {KEEP}."),
    ] = None,
) -> None:
    """Draw original, masked, raw and composite reconstructions, or attention, of one run or of several.

    e.g. pmae visualize runs/a photo.jpg --attention
    """
    from perceptual_mae.config.build import user_mistakes

    masked = {"--ratio": ratio, "--seed": seed, "--view": view}
    if useless := [name for name, value in masked.items() if value is not None and attention]:
        raise UserError(f"--attention hides nothing and reconstructs nothing; leave out {', '.join(useless)}")
    if keep is not None and not attention:
        raise UserError("--keep is a share of the attention; add --attention")
    others = against or []
    for path in (folder, *others):
        check_run(path)
    import torch

    from perceptual_mae.config import build
    from perceptual_mae.run.folder import distinct_names
    from perceptual_mae.run.run import Run
    from perceptual_mae.visualization.image_grid import save, sheet

    runs = [Run(path, trust_code=trust_code) for path in (folder, *others)]
    first = runs[0]
    batch, changes = own_images(first, images) if images else (held_out_images(first, count), "")
    generators = [run.generator() for run in runs]
    check_alike(runs, generators)
    batch = batch.to(torch.device("cpu"))
    names = distinct_names([run.path for run in runs], COLUMNS) if others else [""]
    by_name = dict(zip(names, generators, strict=True))
    if attention:
        keep = KEEP if keep is None else keep
        columns = attention_sheet(batch.images, by_name, keep)
        about = f"the last layer's class token, kept patches hold {keep:g} of its attention to patches"
    else:
        ratio = build.final_ratio(first.config.masking) if ratio is None else ratio
        masking, seed, view = first.config.masking, seed or 0, view or "both"
        masks = user_mistakes(lambda: build.build_fixed_masks(masking, generators[0].grid, seed, ratio)(batch))
        columns = reconstruction_sheet(batch.images, masks, by_name, view)
        about = f"ratio {ratio:g}, mask seed {seed}" + (f", {view} of each run" if others and view != "both" else "")
    out = out or default_path(first, names[1:], "attention" if attention else "visualize")
    save(sheet(columns), out)
    if attention and out == default_path(first, [], "attention"):
        save_patch_maps(batch.images[:MAPPED], generators[0], default_path(first, [], "attention_by_patch"))
    lines = [f"{out}: {len(batch.images)} images, {about}"]
    lines += [changes] if changes else []
    if attention:
        lines.append("each map is coloured from 0 to its own largest patch")
    elif any(one.norm_pix for one in generators):
        lines.append("* norm_pix: patches are un-normalised with the true patch's mean and deviation")
    print_lines(*lines)


def reconstruction_sheet(
    images: "Tensor", masks: "Tensor", generators: dict[str, "MaskedAutoencoder"], view: Pictures
) -> dict[str, "Tensor"]:
    """Return the columns of reconstructions; those of several runs have the run's name, which "" leaves out."""
    import torch

    from perceptual_mae.evaluation.finite import check_finite
    from perceptual_mae.visualization.image_grid import reconstruction_columns

    columns: dict[str, Tensor] = {}
    for name, one in generators.items():
        with torch.no_grad():
            reconstruction = one(images, masks)
        check_finite(reconstruction.pyramid[0], "reconstructions")
        for kind, pictures in reconstruction_columns(images, reconstruction).items():
            if kind not in ("raw", "composite"):
                columns[kind] = pictures
            elif view in (kind, "both"):
                label = kind if not name else name if view != "both" else f"{name} {kind}"
                columns[f"{label} *" if one.norm_pix else label] = pictures
    return columns


def attention_sheet(images: "Tensor", generators: dict[str, "MaskedAutoencoder"], keep: float) -> dict[str, "Tensor"]:
    """Return the columns of attention over whole images; those of several runs have the run's name."""
    import torch

    from perceptual_mae.evaluation.finite import check_finite
    from perceptual_mae.visualization.attention import attention_columns

    columns: dict[str, Tensor] = {}
    for name, one in generators.items():
        with torch.no_grad():
            weights = check_finite(one.encoder.class_attention(images), "attention maps")
        for kind, pictures in attention_columns(images, weights, one.grid, keep).items():
            columns[kind if kind == "original" or not name else f"{name} {kind}"] = pictures
    return columns


def save_patch_maps(images: "Tensor", generator: "MaskedAutoencoder", path: Path) -> None:
    """Write what each patch attends to, one image below the other, as a grey PNG (B * L, L): the report shows it."""
    import torch
    from PIL import Image

    from perceptual_mae.visualization.attention import patch_maps
    from perceptual_mae.visualization.image_grid import save

    with torch.no_grad():
        maps = patch_maps(generator.encoder.last_attention(images))
    save(Image.fromarray(maps.flatten(0, 1).numpy()), path)


def default_path(first: "Run", others: list[str], kind: str) -> Path:
    """Return where a sheet goes: images/ of the first run, under a name that names the other runs."""
    names = re.sub(r"[^\w.+-]", "-", "_".join(others))
    if len(names) > LONGEST_NAME:
        names = f"{len(others)}_runs_{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    return first.path / "images" / f"{kind}_{first.step:08d}{f'_beside_{names}' if names else ''}.png"


def check_alike(runs: list["Run"], generators: list["MaskedAutoencoder"]) -> None:
    """Refuse to draw runs side by side whose images or patches differ."""
    generator = generators[0]
    for run, other in zip(runs[1:], generators[1:], strict=True):
        if (other.image_size, other.channels, other.grid) != (generator.image_size, generator.channels, generator.grid):
            raise UserError(
                f"{run.path}: its images have {_describe(other)}, those of {runs[0].path} {_describe(generator)}; "
                "runs are drawn side by side where they are the same"
            )


def _describe(generator: "MaskedAutoencoder") -> str:
    height, width = generator.image_size
    rows, columns = generator.grid
    return f"{generator.channels} channels, {height}x{width} pixels and {rows}x{columns} patches"


def held_out_images(run: "Run", count: int) -> "Batch":
    """Return held-out images of the run's data set, those of the grids in its images/."""
    from perceptual_mae.config import build
    from perceptual_mae.data.loading import evaluation_batches
    from perceptual_mae.data.subsets import random_subset

    dataset = run.config.data.build(run.config.evaluation.split)
    transform = build.build_evaluation_transform(run.config.data)
    chosen = random_subset(len(dataset), count)
    return next(evaluation_batches(dataset, transform, batch_size=count, indices=chosen))


def own_images(run: "Run", paths: list[Path]) -> tuple["Batch", str]:
    """Return image files prepared as the run prepares held-out images, and what was done to them in words.

    The mask of each depends on its place. Raises UserError with a line for each file that cannot be read.
    """
    import torch

    from perceptual_mae.config import build
    from perceptual_mae.data.batch import Batch
    from perceptual_mae.data.decoding import MAX_PIXELS, UnreadableImageError, read_image

    transform = build.build_evaluation_transform(run.config.data)
    max_pixels = run.config.data.options().get("max_pixels", MAX_PIXELS)
    height, width = transform.size
    images: list[Tensor] = []
    changed, mistakes = list[str](), list[str]()
    for path in paths:
        try:
            image = read_image(path, max_pixels=max_pixels)
        except UnreadableImageError as failure:
            mistakes.append(f"{path}: cannot be read ({failure.reason}); give another image file or leave it out")
            continue
        if image.shape[-2:] != (height, width):
            changed.append(f"{path.name} {image.shape[-2]}x{image.shape[-1]}")
        images.append(transform(image))
    if mistakes:
        raise UserError("\n".join(mistakes))
    scaled = f"shorter side {transform.resize}" if transform.resize else "just covering the crop"
    changes = (
        f"scaled ({scaled}) and cropped in the middle to {height}x{width}: {', '.join(changed)}" if changed else ""
    )
    places = torch.arange(len(paths))
    return Batch(
        torch.stack(images), torch.full_like(places, -1), places, torch.zeros_like(places), ()
    ), changes * bool(changed)
