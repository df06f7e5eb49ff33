"""`pmae sweep`: a grid of runs, one after the other, each in a process of its own."""

import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perceptual_mae.cli.options import Layers, check_layers, read_numbers
from perceptual_mae.cli.output import print_lines
from perceptual_mae.errors import UserError
from perceptual_mae.files import write_atomically, write_json
from perceptual_mae.sweep.grid import Axis, make_cells, parse_axis

if TYPE_CHECKING:
    from perceptual_mae.run.signals import StopSignal
    from perceptual_mae.sweep.folder import Planned

FAILED = 1


def sweep_command(
    arguments: Layers,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A run folder for each cell; the same command resumes.")],
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B,...", help="A key and its values; may be repeated. layer=A,B takes layers."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Values of training.seed; none: the configuration's.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="A number of summary.json; may be repeated; none: psnr_masked."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and how far they are, and stop.")] = False,
) -> None:
    """Train a grid of runs, e.g. pmae sweep cifar10 mse --grid optimizer.lr=5e-4,1e-3 --seeds 0,1,2 --out runs/lr.

    A run that fails is written down and the others go on; the exit code is then 1.
    """
    check_layers(arguments)
    axes = [parse_axis(text) for text in grid or []]
    numbers = read_numbers(seeds, "--seeds", least=0) if seeds is not None else ()
    for cell in make_cells(axes, numbers):
        check_layers(cell.arguments(arguments))
    if not axes and not numbers:
        raise UserError("nothing to sweep over; give --grid KEY=A,B,... or --seeds 0,1,2 (one run: pmae pretrain)")
    run(arguments, axes, seeds=numbers, out=out, metrics=metric or ["psnr_masked"], dry_run=dry_run)


def run(
    arguments: list[str], axes: list[Axis], *, seeds: tuple[int, ...], out: Path, metrics: list[str], dry_run: bool
) -> None:
    """Run what of the grid is not finished yet, then set all of it in a table; exit code 1 where a cell failed."""
    from perceptual_mae.run.lock import FolderLock
    from perceptual_mae.sweep.folder import finished_unrecorded, plan, write_record
    from perceptual_mae.sweep.results import check_metrics, draw_curves, read_points, read_summary, to_json, to_markdown

    planned = plan(arguments, make_cells(axes, seeds), out)
    finished = [each for each in planned if each.state == "finished"]
    if finished:
        check_metrics(read_summary(finished[0].path) or {}, metrics)
    if dry_run:
        for each in planned:
            print_lines(f"{each.state:9}{each.path}: pmae pretrain {' '.join(each.arguments)}")
        print_lines(f"{len(planned)} runs, {len(planned) - len(finished)} of them to go")
        return
    with FolderLock(out):
        write_record(out, arguments, axes, seeds, finished_unrecorded(out, planned))
        runner = Runner(planned, metrics, lambda ended: write_record(out, arguments, axes, seeds, ended))
        runner.run()
        points = read_points(planned, metrics)
        table = to_markdown(points, metrics)
        write_atomically(out / "results.md", f"{table}\n")
        write_json(out / "results.json", {"kind": "sweep", "metrics": metrics, "points": to_json(points)})
        if axes:
            draw_curves(points, axes, metrics, out / "curve.png")
    print_lines(table)
    files = f"results.md, results.json{', curve.png' if axes else ''}"
    print_lines(f"written to {out}: {files}; next: pmae compare {out}/*/", to_stderr=True)
    if runner.failed:
        failed = f"failed: {', '.join(runner.failed)} (why: {out / 'sweep.json'}); the same command tries them again"
        print_lines(failed, to_stderr=True)
        raise typer.Exit(FAILED)


class Runner:
    """The cells that are run now. `ended`: by name how they ended; `failed`: the names of those that failed."""

    def __init__(self, planned: list["Planned"], metrics: list[str], record: Any) -> None:
        self.planned, self.metrics, self.record = planned, metrics, record
        self.ended: dict[str, dict[str, Any]] = {}

    @property
    def failed(self) -> list[str]:
        return [name for name, ending in self.ended.items() if ending["status"] == "failed"]

    def run(self) -> None:
        """Run all cells that are not finished; leave with exit code 130 when asked to stop."""
        from perceptual_mae.run.signals import StopSignal

        todo = [each for each in self.planned if each.state != "finished"]
        if skipped := len(self.planned) - len(todo):
            print_lines(f"sweep: {skipped} of {len(self.planned)} runs are finished already", to_stderr=True)
        started = time.monotonic()
        with StopSignal() as stop:
            for number, each in enumerate(todo):
                left = (time.monotonic() - started) / number * (len(todo) - number) if number else None
                words = f", left {timedelta(seconds=round(left))}" if left is not None else ""
                print_lines(f"sweep: run {number + 1} of {len(todo)}, {each.cell.name}{words}", to_stderr=True)
                self.run_one(each, stop)

    def run_one(self, each: "Planned", stop: "StopSignal") -> None:
        """Run one cell and write down how it ended."""
        from perceptual_mae.run.signals import EXIT_CODE
        from perceptual_mae.sweep.launch import launch
        from perceptual_mae.sweep.results import check_metrics, read_summary

        before = time.monotonic()
        ending = launch(each.arguments, each.path, lambda line: print_lines(f"  {line}", to_stderr=True), stop)
        seconds = round(time.monotonic() - before, 1)
        if stop.requested:
            print_lines("sweep: stopped; the same command goes on from here", to_stderr=True)
            raise typer.Exit(EXIT_CODE)
        summary = read_summary(each.path)
        if ending.code == 0 and summary is not None:
            self.ended[each.cell.name] = {"status": "finished", "seconds": seconds}
        else:
            reason = ending.reason or "it left no summary"
            print_lines(f"sweep: {each.cell.name} failed: {reason}", to_stderr=True)
            self.ended[each.cell.name] = {
                "status": "failed",
                "seconds": seconds,
                "code": ending.code,
                "reason": reason,
                "last_lines": list(ending.lines),
            }
        self.record(self.ended)
        if summary is not None:
            check_metrics(summary, self.metrics)
