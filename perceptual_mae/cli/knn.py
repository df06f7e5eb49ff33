"""`pmae knn`: nearest neighbours among a frozen encoder's features; nothing is trained."""

from pathlib import Path

from perceptual_mae.cli.options import Scored
from perceptual_mae.cli.output import check_out, finish, numbers
from perceptual_mae.cli.progress import Watcher
from perceptual_mae.cli.representation_tables import knn_table
from perceptual_mae.evaluation.open_run import open_run
from perceptual_mae.evaluation.representation.evaluate import knn_run


def run(
    scored: Scored,
    *,
    neighbours: str,
    temperature: float,
    baselines: bool,
    out: Path | None,
) -> None:
    """Score a run by its nearest neighbours, write the scores beside it (or to `out`) and print their table."""
    counts = numbers(neighbours, "--neighbours", least=1)
    check_out(out)
    opened = open_run(**vars(scored))
    with Watcher(quiet=not opened.is_main_process) as watch:
        report = knn_run(
            opened.run,
            opened.data,
            opened.accelerator,
            neighbours=counts,
            temperature=temperature,
            baselines=baselines,
            ema=scored.ema,
            watch=watch,
        )
    finish(opened, report, knn_table, out or opened.default_path("knn"))
