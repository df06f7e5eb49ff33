"""`pmae data`: images packed into shards, and all images of a data set decoded."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perceptual_mae.cli.options import check_image_folder, check_layers, load_layers, read_size
from perceptual_mae.cli.output import print_lines
from perceptual_mae.errors import UserError
from perceptual_mae.files import write_json

if TYPE_CHECKING:
    from perceptual_mae.data.checking import CheckedImages
    from perceptual_mae.data.dataset import ImageDataset
    from perceptual_mae.images import Size

data = typer.Typer(help="Images: pack a folder into shards, check that all can be read.", no_args_is_help=True)

MEGABYTES = 500.0
CROP = "224"
LISTED_CLASSES = 20
"""Up to so many classes are listed one by one."""


@data.command("shard")
def shard_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images: flat, in class folders, or split folders.")],
    out: Annotated[Path, typer.Option(help="Folder to write: whole in the end, or not at all.")],
    size_mb: Annotated[
        float, typer.Option("--size-mb", min=0.001, max=1e6, help="Largest shard, in 10^6 bytes.")
    ] = MEGABYTES,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace shards that are there.")] = False,
) -> None:
    """Pack images into shards (webdataset tars), e.g. pmae data shard ~/photographs --out ~/shards.

    Files keep their bytes and their order; the same files make the same shards. Train with data.kind=shards.
    """
    check_image_folder(folder)
    from perceptual_mae.data.shard_writing import write_shards
    from perceptual_mae.progress import ProgressBar

    with ProgressBar() as on_progress:
        counts = write_shards(folder, out, megabytes=size_mb, overwrite=overwrite, on_progress=on_progress)
    for split, (images, shards) in counts.items():
        print_lines(f"{out / split}: {images:,} images in {shards:,} shard{'s' if shards > 1 else ''}")
    print_lines(f"train on them with data.kind=shards data.root={out}")


@data.command("check")
def check_command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER|RUN|LAYER...", help="Images, shards, a run, or layers with overrides key=value."
        ),
    ],
    image_size: Annotated[
        str | None,
        typer.Option(metavar="SIDE|HxW", help=f"Crop that images should cover; none: the run's, of a folder {CROP}."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, max=1024, help="Processes that decode; none: one a core.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all of it to a file.")] = None,
) -> None:
    """Decode all images as training does, and say what there is, e.g. pmae data check ~/photographs.

    Lists what cannot be read, counts classes, sizes and modes, finds images of the same pixels. Of a run or a
    configuration these are the images that are trained on and those that are scored. Exit code 2: some are unreadable.
    """
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise UserError(f"{file}: cannot be written; give --json a file in a folder that exists")
    crop = None if image_size is None else read_size(image_size, "--image-size")
    if not Path(arguments[0]).expanduser().is_dir():
        check_layers(arguments)
    from perceptual_mae.data.checking import check_datasets
    from perceptual_mae.progress import ProgressBar

    datasets, own_crop = _datasets(arguments)
    count = (os.cpu_count() or 1) if workers is None else workers
    with ProgressBar() as on_progress:
        checked = check_datasets(datasets, crop or own_crop, workers=count, on_progress=on_progress)
    if file is not None:
        write_json(file, {split: images.as_tree() for split, images in checked.items()})
    for split, images in checked.items():
        print_lines(*_lines(split, images))
    unreadable = sum(len(images.unreadable) for images in checked.values())
    if unreadable:
        total = sum(images.num_images for images in checked.values())
        raise UserError(f"{unreadable:,} of {total:,} images cannot be read; they are listed above: fix or remove them")


def _datasets(arguments: list[str]) -> "tuple[dict[str, ImageDataset], Size]":
    """Return the data sets by split, and the crop that is trained on."""
    folder = Path(arguments[0]).expanduser()
    if folder.is_dir() and not (folder / "config.yaml").exists():
        if len(arguments) > 1:
            raise UserError(
                f"{arguments[1]}: a folder of images has no keys; check a recipe, as image_folder data.root="
            )
        return _splits_of(folder), read_size(CROP, "--image-size")
    if folder.is_dir():
        from perceptual_mae.evaluation.labelled_data import with_data
        from perceptual_mae.run.folder import read_config

        config = with_data(read_config(folder), None, arguments[1:])
    else:
        config = load_layers(arguments)
    splits = ("train", config.evaluation.split)
    return {split: config.data.build(split) for split in splits}, config.data.size


def _splits_of(folder: Path) -> "dict[str, ImageDataset]":
    """Return all images of a folder: those of its split folders one by one, where there are any."""
    from perceptual_mae.data import kind_of_folder
    from perceptual_mae.data.image_tree import ImageTree, find_folder
    from perceptual_mae.data.shards import ShardFolder
    from perceptual_mae.data.splits import FOLDER_NAMES

    open_folder = ShardFolder if kind_of_folder(folder) == "shards" else ImageTree
    folders = {split: path for split, names in FOLDER_NAMES.items() if (path := find_folder(folder, names)) is not None}
    if "train" in folders:
        return {split: open_folder(path) for split, path in folders.items()}
    rest = open_folder(folder, exclude=list(folders.values()))
    return {"images" if not folders else "train": rest, **{split: open_folder(path) for split, path in folders.items()}}


def _lines(split: str, images: "CheckedImages") -> list[str]:
    readable = images.num_images - len(images.unreadable)
    unreadable = f", {len(images.unreadable):,} of which cannot be read" if images.unreadable else ", all readable"
    lines = [f"{split}: {images.num_images:,} images{unreadable}"]
    if images.classes:
        counts = images.classes.values()
        lines.append(f"  classes     {len(counts):,}, {min(counts):,} to {max(counts):,} readable images each")
        if len(counts) <= LISTED_CLASSES:
            lines.append("              " + ", ".join(f"{name} {count:,}" for name, count in images.classes.items()))
    if readable:
        from perceptual_mae.data.checking import spread

        for name, values in (("width", images.widths), ("height", images.heights)):
            sizes = spread(values) or {}
            lines.append(f"  {name:<12}{sizes['min']:g} to {sizes['max']:g}, median {sizes['median']:g}")
        lines.append("  modes       " + ", ".join(f"{mode} {count:,}" for mode, count in images.modes.most_common()))
    lines += [f"  warning: {warning}" for warning in images.warnings]
    lines += [f"  cannot be read: {name}: {reason}" for name, reason in images.unreadable.items()]
    return lines
