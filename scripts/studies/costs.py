"""What a study costs: seconds of the cells that were run, carried over to those that were not.

A command takes a while to start, then so long for each image. The start is the shortest cell that was seen; what an
image costs is read off the cells of its kind or, where there is none, off those of its command.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from study import Cell

HOUR = 3600


@dataclass(frozen=True)
class Costs:
    """Seconds to start a command, and for an image by kind; `guessed` by command alone."""

    start: float
    by_kind: dict[str, float]
    by_command: dict[str, float]

    def seconds(self, cell: Cell) -> float | None:
        """Return what a cell will take, or None where nothing like it was seen."""
        rate = self.by_kind.get(cell.kind, self.by_command.get(_command(cell.kind)))
        if cell.images and rate is None:
            return None
        return self.start * cell.starts + cell.images * (rate or 0.0)


@dataclass(frozen=True)
class Extrapolation:
    """Hours of all cells; kinds `guessed` from other cells of their command, and those that nothing tells of."""

    hours: float
    cells: int
    guessed: list[str]
    unknown: list[str]


def measure(records: Iterable[Mapping[str, Any]]) -> Costs | None:
    """Return the costs that finished cells tell; None where there is none.

    Cells that went on after a stop, or failed, tell nothing.
    """
    whole = [each for each in records if each["status"] == "finished" and each["whole"]]
    if not whole:
        return None
    start = min(each["seconds"] / each["starts"] for each in whole)
    timed = [each for each in whole if each["images"]]
    by_kind = {kind: _rate([e for e in timed if e["kind"] == kind], start) for kind in {e["kind"] for e in timed}}
    commands = {_command(each["kind"]) for each in timed}
    by_command = {name: _rate([e for e in timed if _command(e["kind"]) == name], start) for name in commands}
    return Costs(start, by_kind, by_command)


def extrapolate(cells: Iterable[Cell], costs: Costs) -> Extrapolation:
    """Return what cells would take at these costs."""
    listed = list(cells)
    known = [seconds for cell in listed if (seconds := costs.seconds(cell)) is not None]
    unknown = [cell.kind for cell in listed if costs.seconds(cell) is None]
    guessed = [cell.kind for cell in listed if cell.images and cell.kind not in costs.by_kind]
    return Extrapolation(
        sum(known) / HOUR, len(listed), sorted(set(guessed) - set(unknown)), list(dict.fromkeys(unknown))
    )


def _rate(records: list[Mapping[str, Any]], start: float) -> float:
    """Return seconds an image, the start of each process taken off."""
    spent = sum(max(0.0, each["seconds"] - start * each["starts"]) for each in records)
    return spent / sum(int(each["images"]) for each in records)


def _command(kind: str) -> str:
    return kind.partition(" ")[0]
