"""`pmae embed`: features of one's own images, by a run's encoder, in a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perceptual_mae.cli.options import Ema, Folder, TrustCode, check_run
from perceptual_mae.cli.output import check_out, print_lines
from perceptual_mae.errors import UserError

if TYPE_CHECKING:
    from perceptual_mae.evaluation.representation.embedding import Embedding

NAMED = 3
"""So many unreadable images are named in a line."""


def embed_command(
    folder: Folder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES", help="A folder of images, or image files.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write; ends in .npz or .parquet.")],
    tokens: Annotated[
        str,
        typer.Option(
            metavar="NAME,...", help="class: the class token; mean: the mean patch token; patches: all of them."
        ),
    ] = "class,mean",
    layer: Annotated[
        int | None, typer.Option(min=1, help="Block to take them from, of 1 to the depth; none: after the last norm.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Write float16; none: float32.")] = False,
    ema: Ema = None,
    trust_code: TrustCode = False,
) -> None:
    """Write the features of images, as a run's encoder has them, e.g. pmae embed runs/a photos --out features.npz.

    Images are prepared as the run prepares held-out ones; those that cannot be read are named and left out.
    """
    check_run(folder)
    check_out(out, (".npz", ".parquet"))
    for path in images:
        if not path.exists():
            raise UserError(f"{path}: does not exist; give a folder of images, or image files")
        if path.is_dir() and len(images) > 1:
            raise UserError(f"{path}: is a folder among {len(images)} arguments; give one folder, or files alone")
    from perceptual_mae.data.decoding import MAX_PIXELS
    from perceptual_mae.data.image_files import ImageFiles, check_any, images_below
    from perceptual_mae.data.unreadable import check_images
    from perceptual_mae.evaluation.open_run import make_accelerator
    from perceptual_mae.evaluation.representation.embedding import (
        check_pyarrow,
        embed_images,
        tokens_of,
        write_embedding,
    )
    from perceptual_mae.progress import ProgressBar
    from perceptual_mae.run.run import Run

    kept = tokens_of(tokens)
    if out.suffix == ".parquet":
        check_pyarrow()
    run = Run(folder, trust_code=trust_code)
    max_pixels = run.config.data.options().get("max_pixels", MAX_PIXELS)
    if images[0].is_dir():
        files = images_below(images[0], max_pixels=max_pixels, max_unreadable=1.0)
    else:
        files = ImageFiles(images, [str(path) for path in images], max_pixels=max_pixels, max_unreadable=1.0)
    accelerator = make_accelerator(None)  # float32, on whatever machine
    with ProgressBar(quiet=not accelerator.is_main_process) as on_progress:
        check = check_images({"images": files}, on_progress)
        check_any(files, len(files) - len(check.all_unreadable))
        for warning in check.warnings if accelerator.is_main_process else ():
            on_progress.log(f"warning: {warning}")
        embedding = embed_images(run, files, accelerator, tokens=kept, layer=layer, ema=ema, on_progress=on_progress)
    if accelerator.is_main_process:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_embedding(embedding, out, half=half)
        print_lines(*summary(embedding, out))


def summary(embedding: "Embedding", out: Path) -> list[str]:
    """Return what was embedded, by which encoder, what was left out, and what the file holds."""
    metadata = embedding.metadata
    height, width = metadata["transform"]["image_size"]
    resize = metadata["transform"]["resize"]
    place = f"after block {metadata['layer']}" if metadata["layer"] else "after the final norm"
    lines = [
        f"{metadata['run']}, step {metadata['step']}{' (averaged weights)' if metadata['ema'] else ''}: encoder "
        f"{metadata['encoder_sha256'][:12]}, tokens {place}; {len(embedding.names)} images, "
        f"{f'resized to {resize}, ' if resize else ''}{height}x{width}"
    ]
    if left_out := embedding.left_out:
        more = ", ..." if len(left_out) > NAMED else ""
        lines.append(f"{len(left_out)} could not be read and were left out: {', '.join(left_out[:NAMED])}{more}")
    arrays = [f"{name} {tuple(array.shape)}" for name, array in embedding.arrays.items()]
    return [*lines, f"written to {out}: names, {', '.join(arrays)}"]
