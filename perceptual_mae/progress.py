"""Progress of long work on standard error: bars with the time left on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

OnProgress = Callable[[str, int, int], None]
"""Called as (task, done, total) while work goes on."""

SECONDS_BETWEEN_LINES = 15.0


def no_progress(task: str, done: int, total: int) -> None:
    """Show nothing; the default of functions that take an `OnProgress`."""


@dataclass
class _Task:
    started: float
    last_line: float
    first: int
    done: int
    total: int
    bar: TaskID | None

    def time_left(self, now: float) -> str:
        """Return h:mm:ss, estimated from what was done since the first call."""
        rate = (now - self.started) / max(1, self.done - self.first)
        minutes, seconds = divmod(round(rate * (self.total - self.done)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}"


class ProgressBar:
    """An `OnProgress` that shows a bar for each task on a terminal and a line every few seconds elsewhere.

    Use it as a context manager. seconds_between_lines: None for a task that has only the lines of `status`.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        seconds_between_lines: float | None = SECONDS_BETWEEN_LINES,
        console: Console | None = None,
    ) -> None:
        self.quiet, self.seconds_between_lines = quiet, seconds_between_lines
        self.console = console or Console(stderr=True, soft_wrap=True)
        # How far and how long come first; the words are what a narrow terminal cuts off.
        columns = (
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            BarColumn(bar_width=12),
            TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            ),
        )
        is_shown = self.console.is_terminal and not quiet
        self.bars = Progress(*columns, console=self.console, expand=True) if is_shown else None
        self.tasks: dict[str, _Task] = {}

    def __enter__(self) -> "ProgressBar":
        if self.bars:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars:
            self.bars.stop()

    def __call__(self, task: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done; the first call of a task sets where its time is counted from."""
        now = time.monotonic()
        if task not in self.tasks:
            bar = self.bars.add_task(task, total=total, completed=done) if self.bars else None
            self.tasks[task] = _Task(now, now, done, done, total, bar)
        state = self.tasks[task]
        state.done, state.total = done, total
        if self.bars and state.bar is not None:
            self.bars.update(state.bar, completed=done, total=total)
        elif (
            self.seconds_between_lines is not None
            and now - state.last_line >= self.seconds_between_lines
            and 0 < done < total
        ):
            self.log(f"{task}: {done} of {total}, left {state.time_left(now)}")
            state.last_line = now

    def status(self, task: str, stage: str, text: str) -> None:
        """Show in words how a task goes: next to its bar, or at once in a line with its step and the time left."""
        state = self.tasks[task]
        if self.bars and state.bar is not None:
            self.bars.update(state.bar, description=f"{stage}  {text}")
        else:
            self.log(f"{stage}  step {state.done}/{state.total}  left {state.time_left(time.monotonic())}  {text}")

    def log(self, message: str) -> None:
        """Print a line, above the bars where there are any."""
        if not self.quiet:
            self.console.print(message, highlight=False, markup=False)
