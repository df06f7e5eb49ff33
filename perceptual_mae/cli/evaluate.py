"""`pmae evaluate`: reconstructions of held-out images scored; a line an image, pictures of the best and worst."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perceptual_mae.cli.options import (
    DataKeys,
    Ema,
    FeatureNetworks,
    Folder,
    Metrics,
    Out,
    Require,
    Scored,
    Split,
    TestLimit,
    TrustCode,
    check_run,
)
from perceptual_mae.cli.output import check_out, print_lines
from perceptual_mae.cli.score_tables import COUNTED, cell, closing_notes, label, score_table
from perceptual_mae.files import write_json
from perceptual_mae.report.markdown_table import markdown_table

if TYPE_CHECKING:
    from perceptual_mae.evaluation.reconstruction.data import HeldOut
    from perceptual_mae.evaluation.reconstruction.evaluate import Evaluation


def evaluate_command(
    folder: Folder,
    overrides: DataKeys = None,
    metrics: Metrics = None,
    require: Require = None,
    features: FeatureNetworks = None,
    ratio: Annotated[float | None, typer.Option(min=0, max=0.999, help="Hidden share; none: the run's last.")] = None,
    mask: Annotated[str | None, typer.Option(metavar="KIND", help="Kind of masks; none: the run's.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of the masks; none: the run's evaluation.seed.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also mean colour, nearest patch and inverse distance.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Images at once; none: the run's.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="LAYER|FOLDER", help="Images, labelled or not: a recipe or a folder; none: the run's."),
    ] = None,
    split: Split = None,
    limit: TestLimit = None,
    ema: Ema = None,
    trust_code: TrustCode = False,
    out: Out = None,
) -> None:
    """Score reconstructions of held-out images under fixed masks, e.g. pmae evaluate runs/a --baselines."""
    check_run(folder)
    score(
        Scored(folder, overrides or [], data, split, None, limit, ema, trust_code),
        metrics=metrics,
        require=require or [],
        features=features or [],
        ratio=ratio,
        mask=mask,
        seed=seed,
        baselines=baselines,
        batch_size=batch_size,
        out=out,
    )


def score(
    scored: Scored,
    *,
    metrics: str | None,
    require: list[str],
    features: list[str],
    ratio: float | None,
    mask: str | None,
    seed: int | None,
    baselines: bool,
    batch_size: int | None,
    out: Path | None,
) -> None:
    """Score a run, write report, lines and pictures into its folder (or to `out`) and print the table."""
    from perceptual_mae.evaluation.image_check import check_scored_images
    from perceptual_mae.evaluation.metrics.selection import names_of
    from perceptual_mae.evaluation.open_run import check_ema, make_accelerator, report_path
    from perceptual_mae.evaluation.reconstruction.data import open_held_out, with_images, with_masking
    from perceptual_mae.evaluation.reconstruction.evaluate import evaluate_run
    from perceptual_mae.progress import ProgressBar
    from perceptual_mae.run.run import Run

    check_out(out)
    names_of(metrics)
    run = Run(scored.path, trust_code=scored.trust_code)
    check_ema(run, scored.ema)
    config = with_masking(with_images(run.config, scored.data, scored.overrides, scored.split), mask)
    data = open_held_out(config, name=scored.data, split=scored.split, limit=scored.test_limit)
    accelerator = make_accelerator(run.config)
    with ProgressBar(quiet=not accelerator.is_main_process) as on_progress:
        check_scored_images(run.path, {data.split: data.dataset}, on_progress)
        evaluation = evaluate_run(
            run,
            data,
            accelerator,
            config=config,
            metrics=metrics,
            require=require,
            features=features,
            ratio=ratio,
            seed=seed,
            batch_size=batch_size,
            baselines=baselines,
            ema=scored.ema,
            trust_code=scored.trust_code,
            on_progress=on_progress,
        )
    if accelerator.is_main_process:
        differing = [
            f"{option}_{value}"
            for option, value in (
                ("ratio", ratio),
                ("mask", mask and mask.rpartition(":")[2]),
                ("seed", seed),
                ("features", "+".join(evaluation.report["feature_networks"]).replace(":", "-") if features else None),
                ("metrics", metrics and metrics.replace(" ", "").replace(",", "+")),
            )
            if value is not None
        ]
        usual = report_path(run, "evaluate", data.name, data.split, [data.limit], scored.ema, *differing)
        write(evaluation, data, out or usual)


def write(evaluation: "Evaluation", data: "HeldOut", path: Path) -> None:
    """Write the report, the lines and the pictures side by side, and print the tables."""
    from perceptual_mae.evaluation.reconstruction.per_image import write_csv
    from perceptual_mae.visualization.image_grid import save

    path.parent.mkdir(parents=True, exist_ok=True)
    report, files = evaluation.report, [path.name]
    page = evaluation.best_and_worst.page()
    if page is not None:
        save(page, path.with_suffix(".png"))
        report["pictures"] = path.with_suffix(".png").name
        files.append(f"{report['pictures']} (best and worst)")
    if evaluation.table is not None:
        write_csv(evaluation.table, data.dataset, path.with_suffix(".csv"))
        report["per_image"] = path.with_suffix(".csv").name
        files.append(f"{report['per_image']} (a line an image)")
    write_json(path, report)
    lines = [title(report), "", score_table(report), ""]
    if report.get("baselines"):
        lines += ["Hidden pixels, compared with fillings that learn nothing:", "", baseline_table(report), ""]
    lines += [*notes(report), f"written to {path.parent}: {', '.join(files)}"]
    print_lines(*lines)


def title(report: Mapping[str, Any]) -> str:
    """Say what was scored: weights, images, how they were prepared and masked."""
    transform, mask = report["transform"], report["mask"]
    height, width = transform["image_size"]
    resize = f"resized to {transform['resize']}, " if transform["resize"] else ""
    return (
        f"{report['run']}, step {report['step']}{' (averaged weights)' if report['ema'] else ''}: generator "
        f"{report['generator_sha256'][:12]}; {report['data']}, {report['num_images']} {report['split']} images, "
        f"{resize}{height}x{width}; {mask['kind']} masks, ratio {mask['ratio']:g}, mask seed {mask['seed']}"
    )


def baseline_table(report: Mapping[str, Any]) -> str:
    """Return the scores of hidden pixels: a row for this run and for each baseline."""
    from perceptual_mae.evaluation.reconstruction.per_image import MASKED

    rows_by_name = {"this run": report["scores"].get(MASKED, {})}
    rows_by_name |= {name.replace("_", " "): row.get(MASKED, {}) for name, row in report["baselines"].items()}
    names = [name for name in rows_by_name["this run"] if not name.endswith(COUNTED)]
    rows = [[subject, *(cell(row, name) for name in names)] for subject, row in rows_by_name.items()]
    return markdown_table(["", *(label(name) for name in names)], rows)


def notes(report: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know to read the table."""
    lines = ["raw: the whole output; composite: visible pixels pasted in; masked: hidden pixels alone"]
    if not report["mask"]["hidden_patches"]:
        lines.append("nothing was hidden: raw is what the generator paints, composite is the original")
    if not report["learns_visible_pixels"]:
        lines.append("raw means little here: the run's loss never compared visible pixels")
    if report["uses_target_statistics"]:
        lines.append("norm_pix: patches were un-normalised with the true patch's mean and deviation")
    if report["unreadable_images"]:
        lines.append(f"{report['unreadable_images']} images could not be read and were left out")
    return lines + closing_notes(report, "originals")
