"""`pmae compare-images`: two folders of images scored against each other, whatever made them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perceptual_mae.cli.options import FeatureNetworks, Metrics, Require, TrustCode, check_image_folder, read_size
from perceptual_mae.cli.output import check_out, print_lines
from perceptual_mae.cli.score_tables import closing_notes, score_table
from perceptual_mae.errors import UserError
from perceptual_mae.files import write_json

if TYPE_CHECKING:
    from perceptual_mae.data.image_files import ImageFiles
    from perceptual_mae.evaluation.two_folders import FolderScores


def compare_images_command(
    first: Annotated[Path, typer.Argument(metavar="A", help="A folder of images, such as reconstructions.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The folder that they are compared with.")],
    metrics: Metrics = None,
    require: Require = None,
    features: FeatureNetworks = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="SIDE|HxW", help="Scale and crop all images to this size; none: they stay as they are."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of KID's subsets and of shuffles.")] = 0,
    trust_code: TrustCode = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write; none: scores are printed alone.")] = None,
) -> None:
    """Score the images of a folder against those of another one, e.g. pmae compare-images outputs originals.

    PSNR, SSIM and LPIPS are of images whose names pair up but for the suffix; FID, KID and IS are of all images.
    """
    shape = None if size is None else read_size(size, "--size")
    check_out(out)
    for folder in (first, second):
        check_image_folder(folder)
    from perceptual_mae.data.image_files import images_below
    from perceptual_mae.data.unreadable import check_images
    from perceptual_mae.evaluation.metrics.selection import names_of
    from perceptual_mae.evaluation.open_run import make_accelerator
    from perceptual_mae.evaluation.two_folders import TABLE, compare_folders
    from perceptual_mae.progress import ProgressBar

    names_of(metrics, TABLE)
    files = {"A": images_below(first), "B": images_below(second)}
    accelerator = make_accelerator(None)
    with ProgressBar(quiet=not accelerator.is_main_process) as on_progress:
        check = check_images(files, on_progress, may_remove=True)
        if check.refusal is not None:
            raise UserError(check.refusal)
        for warning in check.warnings if accelerator.is_main_process else ():
            on_progress.log(f"warning: {warning}")
        result = compare_folders(
            files["A"],
            files["B"],
            accelerator,
            size=shape,
            metrics=metrics,
            require=require or [],
            features=features or [],
            seed=seed,
            trust_code=trust_code,
            on_progress=on_progress,
        )
    if accelerator.is_main_process:
        write(result, files["A"], out)


def write(result: "FolderScores", first: "ImageFiles", out: Path | None) -> None:
    """Print the table, and write the report with a line a pair next to it, where that was asked for."""
    from perceptual_mae.evaluation.reconstruction.per_image import write_csv

    report = result.report
    closing = "next: --out FILE.json writes the scores with all that they depend on, and a line a pair"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        closing = f"written to {out.parent}: {out.name}"
        if result.table is not None and len(result.table.indices):
            write_csv(result.table, first, out.with_suffix(".csv"))
            report["per_image"] = out.with_suffix(".csv").name
            closing += f", {report['per_image']} (a line a pair)"
        write_json(out, report)
    print_lines(title(report), "", score_table(report), "", *notes(report), closing)


def title(report: Mapping[str, Any]) -> str:
    """Say which images were compared, how many pair up, and their sizes."""
    folders = [f"{name}: {report[name]['folder']}, {report[name]['files']} images" for name in ("A", "B")]
    smallest, largest = ("x".join(map(str, report["sizes"][key])) for key in ("smallest_sides", "largest_sides"))
    sizes = smallest if smallest == largest else f"sides from {smallest} to {largest}"
    if report["transform"]:
        height, width = report["transform"]["image_size"]
        sizes = f"{height}x{width}"
    pairs = [] if report["pairs"] is None else [f"{report['pairs']} pairs by name"]
    return "; ".join([*folders, *pairs, sizes])


def notes(report: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know to read the table."""
    lines = ["pairs: images of one name"] if report["pairs"] else []
    if report["pairs"] == 0:
        lines.append("no names pair up: scores of pairs, such as PSNR, are left out")
    if report.get("changed_images"):
        lines.append(f"{report['changed_images']} images had another size, and were scaled and cropped in the middle")
    for name in ("A", "B"):
        if unreadable := report[name]["unreadable_images"]:
            lines.append(f"{name}: {unreadable} images could not be read and were left out")
    return lines + closing_notes(report, "B")
