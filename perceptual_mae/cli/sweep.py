"""`pmae sweep`: a grid of runs, one after the other, each in a process of its own."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from perceptual_mae.files import write_atomically, write_json
from perceptual_mae.sweep.folder import Planned, plan, write_record
from perceptual_mae.sweep.grid import Axis, make_cells
from perceptual_mae.sweep.launch import launch
from perceptual_mae.sweep.results import (
    check_metrics,
    draw_curves,
    read_points,
    read_summary,
    to_json,
    to_markdown,
)
from perceptual_mae.training.signals import EXIT_CODE, StopSignal

FAILED = 1


def run(
    arguments: list[str], axes: list[Axis], *, seeds: tuple[int, ...], out: Path, metrics: list[str], dry_run: bool
) -> None:
    """Run what of the grid is not finished yet, then set all of it in a table; exit code 1 where a cell failed."""
    planned = plan(arguments, make_cells(axes, seeds), out)
    finished = [each for each in planned if each.state == "finished"]
    if finished:
        check_metrics(read_summary(finished[0].path) or {}, metrics)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if dry_run:
        for each in planned:
            console.print(f"{each.state:9}{each.path}: pmae pretrain {' '.join(each.arguments)}")
        console.print(f"{len(planned)} runs, {len(planned) - len(finished)} of them to go")
        return
    write_record(out, arguments, axes, seeds, {})
    runner = Runner(planned, metrics, lambda ended: write_record(out, arguments, axes, seeds, ended))
    runner.run()
    points = read_points(planned, metrics)
    table = to_markdown(points, metrics)
    write_atomically(out / "results.md", f"{table}\n")
    write_json(out / "results.json", {"kind": "sweep", "metrics": metrics, "points": to_json(points)})
    if axes:
        draw_curves(points, axes, metrics, out / "curve.png")
    console.print(table)
    told = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    told.print(
        f"written to {out}: results.md, results.json{', curve.png' if axes else ''}; next: pmae compare {out}/*/"
    )
    if runner.failed:
        told.print(f"failed: {', '.join(runner.failed)} (why: {out / 'sweep.json'}); the same command tries them again")
        raise typer.Exit(FAILED)


class Runner:
    """The cells that are run now. `ended` says by name how they did, `failed` names those that failed."""

    def __init__(self, planned: list[Planned], metrics: list[str], record: Any) -> None:
        self.planned, self.metrics, self.record = planned, metrics, record
        self.ended: dict[str, dict[str, Any]] = {}
        self.console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

    @property
    def failed(self) -> list[str]:
        return [name for name, ending in self.ended.items() if ending["status"] == "failed"]

    def run(self) -> None:
        """Run all cells that are not finished; leave with exit code 130 when asked to stop."""
        todo = [each for each in self.planned if each.state != "finished"]
        if skipped := len(self.planned) - len(todo):
            self.console.print(f"sweep: {skipped} of {len(self.planned)} runs are finished already")
        started = time.monotonic()
        with StopSignal() as stop:
            for number, each in enumerate(todo):
                left = (time.monotonic() - started) / number * (len(todo) - number) if number else None
                words = f", left {timedelta(seconds=round(left))}" if left is not None else ""
                self.console.print(f"sweep: run {number + 1} of {len(todo)}, {each.cell.name}{words}")
                self.run_one(each, stop)

    def run_one(self, each: Planned, stop: StopSignal) -> None:
        """Run one cell and write down how it ended."""
        before = time.monotonic()
        ending = launch(each.arguments, each.path, lambda line: self.console.print(f"  {line}"), stop)
        seconds = round(time.monotonic() - before, 1)
        if stop.requested:
            self.console.print("sweep: stopped; the same command goes on from here")
            raise typer.Exit(EXIT_CODE)
        summary = read_summary(each.path)
        if ending.code == 0 and summary is not None:
            self.ended[each.cell.name] = {"status": "finished", "seconds": seconds}
        else:
            reason = ending.reason or "it left no summary"
            self.console.print(f"sweep: {each.cell.name} failed: {reason}")
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
