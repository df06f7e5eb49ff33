"""Long work on standard error: a bar with the time left on a terminal, a line every few seconds elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0


class Watcher:
    """Is told (what, done, total) and shows it; one bar for each `what`. Used as a context."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        on_terminal = self.console.is_terminal and not quiet
        self.bars = Progress(*columns, console=self.console) if on_terminal else None
        self.quiet, self.tasks = quiet, dict[str, TaskID]()
        self.what, self.started, self.told = "", 0.0, 0.0

    def __enter__(self) -> "Watcher":
        if self.bars:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars:
            self.bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.bars:
            if what not in self.tasks:
                self.tasks[what] = self.bars.add_task(what, total=total)
            self.bars.update(self.tasks[what], completed=done)
        elif not self.quiet:
            self._tell(what, done, total)

    def _tell(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self.what:
            self.what, self.started, self.told = what, now, now
        elif now - self.told >= SECONDS_BETWEEN_LINES and 0 < done < total:
            left = (now - self.started) / done * (total - done)
            self.console.print(f"{what}: {done} of {total}, left {left:.0f} s", highlight=False, markup=False)
            self.told = now
