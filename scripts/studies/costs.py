"""What a study costs: time of the cells that were run, carried over to those that were not.

A command takes a while to start, then so long for each image. Both are read off a line through cells of one kind and
different size; where there are none, the start is the shortest cell of all. What an image costs is read off the cells
of its kind or, where there is none, of its command. The clock counts what else a machine does, CPU time does not.
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from study import Cell

HOUR = 3600


CLOCK, CPU = "seconds", "cpu_seconds"
"""What of a cell is counted."""


@dataclass(frozen=True)
class Costs:
    """Seconds to start a command (`shortest` for one that is not known), and for an image by kind and by command."""

    shortest: float
    starts: dict[str, float]
    by_kind: dict[str, float]
    by_command: dict[str, float]

    def seconds(self, cell: Cell) -> float | None:
        """Return what a cell will take, or None where nothing like it was seen."""
        command = _command(cell.kind)
        rate = self.by_kind.get(cell.kind, self.by_command.get(command))
        if cell.images and rate is None:
            return None
        return self.starts.get(command, self.shortest) * cell.starts + cell.images * (rate or 0.0)


@dataclass(frozen=True)
class Extrapolation:
    """Hours of all cells; kinds `guessed` from other cells of their command, and those that nothing tells of."""

    hours: float
    cells: int
    guessed: list[str]
    unknown: list[str]


def measure(records: Iterable[Mapping[str, Any]], counted: str = CLOCK) -> Costs | None:
    """Return the costs that finished cells tell; None where there is none.

    Cells that went on after a stop, or failed, tell nothing; nor does the clock of cells that ran next to others.
    """
    whole = [each for each in records if each["status"] == "finished" and each["whole"]]
    if counted == CLOCK:
        whole = [each for each in whole if each.get("jobs", 1) == 1]
    if not whole:
        return None
    cells = [(each["kind"], int(each["images"]), int(each["starts"]), float(each[counted])) for each in whole]
    shortest = min(seconds / starts for _, _, starts, seconds in cells)
    timed = [cell for cell in cells if cell[1]]
    commands = {_command(kind) for kind, *_ in timed}
    starts = {name: _start([cell for cell in timed if _command(cell[0]) == name], shortest) for name in commands}
    # Cells that took no longer than a start were too small to tell what an image costs.
    by_kind = {
        kind: rate
        for kind in dict.fromkeys(kind for kind, *_ in timed)
        if (rate := _rate([cell for cell in timed if cell[0] == kind], starts[_command(kind)]))
    }
    by_command = {
        name: _rate([cell for cell in timed if _command(cell[0]) == name and cell[0] in by_kind], start)
        for name, start in starts.items()
    }
    return Costs(shortest, starts, by_kind, by_command)


def extrapolate(cells: Iterable[Cell], costs: Costs) -> Extrapolation:
    """Return what cells would take at these costs."""
    listed = list(cells)
    known = [seconds for cell in listed if (seconds := costs.seconds(cell)) is not None]
    unknown = [cell.kind for cell in listed if costs.seconds(cell) is None]
    guessed = [cell.kind for cell in listed if cell.images and cell.kind not in costs.by_kind]
    return Extrapolation(
        sum(known) / HOUR, len(listed), sorted(set(guessed) - set(unknown)), list(dict.fromkeys(unknown))
    )


Timed = tuple[str, int, int, float]
"""A cell's kind, images, processes and seconds."""


def _start(cells: list[Timed], shortest: float) -> float:
    """Return where lines through cells of one kind and one process, of different size, begin on average."""
    begins = []
    for kind in {cell[0] for cell in cells}:
        points = [(images, seconds) for each, images, starts, seconds in cells if each == kind and starts == 1]
        if len({images for images, _ in points}) > 1:
            slope, begin = statistics.linear_regression(*zip(*points, strict=True))
            begins.append(begin if slope > 0 else shortest)
    return max(0.0, statistics.fmean(begins)) if begins else shortest


def _rate(cells: list[Timed], start: float) -> float:
    """Return seconds an image, the start of each process taken off."""
    spent = sum(max(0.0, seconds - start * starts) for _, _, starts, seconds in cells)
    return spent / max(1, sum(images for _, images, _, _ in cells))


def _command(kind: str) -> str:
    return kind.partition(" ")[0]
