"""`pmae evaluate`: reconstructions of held-out images scored; a line an image, pictures of the best and worst."""

from pathlib import Path

import torch
from rich.console import Console

from perceptual_mae.cli.evaluate_tables import baseline_table, notes, score_table, title
from perceptual_mae.cli.options import Scored
from perceptual_mae.cli.output import check_out
from perceptual_mae.cli.progress import Watcher
from perceptual_mae.evaluation.accelerator import make_accelerator
from perceptual_mae.evaluation.metrics.selection import names_of
from perceptual_mae.evaluation.open_run import check_ema, report_path
from perceptual_mae.evaluation.reconstruction.data import HeldOut, open_held_out, with_images, with_masking
from perceptual_mae.evaluation.reconstruction.evaluate import Evaluation, evaluate_run
from perceptual_mae.evaluation.reconstruction.per_image import write_csv
from perceptual_mae.files import write_json
from perceptual_mae.run.run import Run
from perceptual_mae.visualization.image_grid import save


def run(
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
    """Score a run, write report, lines and pictures beside it (or to `out`) and print the table."""
    check_out(out)
    names_of(metrics)
    opened = Run(scored.path)
    check_ema(opened, scored.ema)
    config = with_masking(with_images(opened.config, scored.data, scored.overrides, scored.split), mask)
    data = open_held_out(config, name=scored.data, split=scored.split, limit=scored.test_limit)
    accelerator = make_accelerator(opened.config)
    with Watcher(quiet=not accelerator.is_main_process) as watch:
        found = evaluate_run(
            opened,
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
            watch=watch,
        )
    if accelerator.is_main_process:
        differing = [
            f"{option}_{value}"
            for option, value in (
                ("ratio", ratio),
                ("mask", mask and mask.rpartition(":")[2]),
                ("seed", seed),
                ("features", "+".join(found.report["feature_networks"]).replace(":", "-") if features else None),
                ("metrics", metrics and metrics.replace(" ", "").replace(",", "+")),
            )
            if value is not None
        ]
        usual = report_path(opened, "evaluate", data.name, data.split, [data.limit], scored.ema, *differing)
        write(found, data, out or usual)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def write(found: Evaluation, data: HeldOut, path: Path) -> None:
    """Write the report, the lines and the pictures side by side, and print what a person wants to know."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report, beside = found.report, [path.name]
    page = found.extremes.page()
    if page is not None:
        save(page, path.with_suffix(".png"))
        report["pictures"] = path.with_suffix(".png").name
        beside.append(f"{report['pictures']} (best and worst)")
    if found.table is not None:
        write_csv(found.table, data.dataset, path.with_suffix(".csv"))
        report["per_image"] = path.with_suffix(".csv").name
        beside.append(f"{report['per_image']} (a line an image)")
    write_json(path, report)
    lines = [title(report), "", score_table(report), ""]
    if report.get("baselines"):
        lines += ["Hidden pixels, beside fillings that learn nothing:", "", baseline_table(report), ""]
    lines += [*notes(report), f"written to {path.parent}: {', '.join(beside)}"]
    console = Console(soft_wrap=True)
    for line in lines:
        console.print(line, highlight=False, markup=False)
