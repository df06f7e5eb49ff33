"""`pmae bench`: what a training step costs, beside that of other configurations."""

import json
import time
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from perceptual_mae.benchmark.measure import measure
from perceptual_mae.benchmark.report import report
from perceptual_mae.cli.bench_tables import print_tables
from perceptual_mae.config.parsing import load_config
from perceptual_mae.errors import UserError
from perceptual_mae.files import write_atomically

PLAIN_EVERY = 15.0
"""Seconds between two lines of progress where there is no terminal."""

FILE_WIDTH = 120
"""Columns of the tables where there is no terminal."""


def run(
    groups: list[list[str]], *, rounds: int, warmup: int, threads: int, batch_size: int | None, file: Path | None
) -> None:
    """Measure groups of layers and overrides side by side; ratios are to the second group, the first `--against`."""
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise UserError(f"{file}: cannot be written; give --json a file in a folder that exists")
    size = [f"training.batch_size={batch_size}"] if batch_size is not None else []
    configs = [(" ".join(group), load_config([*group, *size])) for group in groups]
    with Ticker(Console(stderr=True, soft_wrap=True)) as ticker:
        candidates, clock = measure(configs, rounds=rounds, warmup=warmup, threads=threads, progress=ticker.tick)
    told = report(candidates, clock, threads)
    if file is not None:  # before the tables: whoever reads them may close the pipe
        write_atomically(file, json.dumps(told, indent=2) + "\n")
    tables = Console()
    print_tables(told, tables if tables.is_terminal else Console(width=FILE_WIDTH))


class Ticker:
    """Steps done and the time left: a bar on a terminal, now and then a plain line elsewhere."""

    def __init__(self, console: Console, plain_every: float = PLAIN_EVERY) -> None:
        self.console, self.plain_every = console, plain_every
        self.started = self.told = time.monotonic()
        columns = (TextColumn("bench"), BarColumn(), MofNCompleteColumn(), TextColumn("steps, left"))
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console) if console.is_terminal else None
        self.task = self.bar.add_task("bench", total=None) if self.bar else None

    def __enter__(self) -> "Ticker":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def tick(self, done: int, total: int) -> None:
        """Say how many of all steps are done."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, total=total)
            return
        now = time.monotonic()
        if now - self.told >= self.plain_every or done == total:
            self.told = now
            left = timedelta(seconds=round((now - self.started) / done * (total - done)))
            self.console.print(f"bench: step {done} of {total}, left {left}", highlight=False)
