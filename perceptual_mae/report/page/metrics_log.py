"""The numbers of metrics.jsonl as columns over images seen, thinned to what a page can hold with extremes kept."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from perceptual_mae.errors import UserError

Values = NDArray[np.float64]

LINES_AT_ONCE = 500
"""Records that are objects at a time: so few stay in the caches of a processor."""
LARGE = 32 * 2**20
"""Bytes of all runs' metrics from which on they are read by several processes."""
NOT_DRAWN = ("step", "images_seen")
"""Keys that say where on the axis a record stands."""
MOST_INTERVALS = 400
"""Of a term's phases; with more, each stands for several records and says on which share of them the term was on."""
ALARM = re.compile(r"^\S+ \S+ WARNING step (\d{1,15}): (.*)$")
MOST_ALARMS = 200

Interval = tuple[int, int, float]
"""Images seen at its start and end, and the share of its records on which a term was on."""


@dataclass(frozen=True)
class MetricsLog:
    """What a run logged. `columns`: by dotted key the images seen (N,) and the values (N,), both float64.

    epochs: by epoch the images seen at its last record. phases: by term when it was on.
    """

    columns: dict[str, tuple[Values, Values]]
    epochs: dict[int, int]
    phases: dict[str, list[Interval]]

    @property
    def images_seen(self) -> int:
        return max(self.epochs.values(), default=0)


@dataclass(frozen=True)
class Alarm:
    """A warning of the log that names a step."""

    images_seen: int
    step: int
    message: str


def read_logs(paths: Sequence[Path], batch_sizes: Sequence[int]) -> list[MetricsLog]:
    """Read metrics.jsonl of several run folders; large ones at the same time.

    Raises UserError for a line that is no JSON object; a last line that is still being written is left out.
    """
    sizes = [file.stat().st_size if (file := path / "metrics.jsonl").is_file() else 0 for path in paths]
    if len(paths) == 1 or sum(sizes) < LARGE:
        return [read_log(path, batch_size) for path, batch_size in zip(paths, batch_sizes, strict=True)]
    with ProcessPoolExecutor(mp_context=get_context("forkserver")) as pool:
        return list(pool.map(read_log, paths, batch_sizes))


def read_log(path: Path, batch_size: int) -> MetricsLog:
    """Read metrics.jsonl of a run folder; an empty log where there is none."""
    chunks = [_Chunk.of(records, batch_size) for records in _records(path / "metrics.jsonl")]
    columns = {}
    for key in dict.fromkeys(chain.from_iterable(chunk.columns for chunk in chunks)):
        parts = [(chunk.images_seen, chunk.columns[key]) for chunk in chunks if key in chunk.columns]
        images_seen, values = (np.concatenate(each) for each in zip(*parts, strict=True))
        is_there = np.isfinite(values) & np.isfinite(images_seen)
        if key not in NOT_DRAWN and is_there.any():
            columns[key] = images_seen[is_there], values[is_there]
    epochs: dict[int, int] = {}
    for at, epoch in zip(*columns.pop("epoch", (np.empty(0), np.empty(0))), strict=True):
        epochs[int(epoch)] = max(int(at), epochs.get(int(epoch), 0))
    active = [(int(at), names) for chunk in chunks for at, names in chunk.active if np.isfinite(at)]
    return MetricsLog(columns, epochs, _phases(active))


def thin(images_seen: Values, values: Values, most: int) -> tuple[Values, Values]:
    """Return at most `most` of the points (N,): the first, the last, and the least and greatest of equal parts."""
    count = len(values)
    if count <= most:
        return images_seen, values
    width = -(-count // max(1, most // 2 - 1))
    rows = np.append(values, np.repeat(values[-1], -count % width)).reshape(-1, width)
    first = np.arange(len(rows)) * width
    kept = np.concatenate([[0], first + rows.argmin(1), first + rows.argmax(1), [count - 1]])
    kept = np.unique(np.minimum(kept, count - 1))
    return images_seen[kept], values[kept]


def read_alarms(path: Path, batch_size: int, images_seen: int) -> list[Alarm]:
    """Return the alarms of a run's log.txt up to the images it has seen, each once: a resumed run repeats steps."""
    try:
        text = (path / "log.txt").read_text(errors="replace")
    except OSError:
        return []
    matches = [match for line in text.splitlines() if (match := ALARM.match(line))]
    alarms = {(int(match[1]), match[2]): None for match in matches if int(match[1]) * batch_size <= images_seen}
    return [Alarm(step * batch_size, step, message) for step, message in sorted(alarms)][:MOST_ALARMS]


@dataclass(frozen=True)
class _Chunk:
    """Some records: images seen (N,), numbers (N,) by dotted key with NaN for none, and the terms that were on."""

    images_seen: Values
    columns: dict[str, Values]
    active: list[tuple[float, tuple[str, ...]]]

    @classmethod
    def of(cls, records: list[Any], batch_size: int) -> "_Chunk":
        columns = dict(_columns(records))
        images_seen = columns.get("step", np.full(len(records), np.nan)) * batch_size
        terms = [record.get("active") for record in records]
        pairs = zip(images_seen, terms, strict=True)
        active = [(at, tuple(map(str, each))) for at, each in pairs if isinstance(each, list)]
        return cls(images_seen, columns, active)


def _records(path: Path) -> Iterator[list[Any]]:
    """Yield the records of a file, some at a time."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        number = 0
        while lines := list(islice(file, LINES_AT_ONCE)):
            records = []
            for line in lines:
                number += 1
                if not line.endswith(b"\n"):  # it is being written
                    continue
                try:
                    record = from_json(line, cache_strings="keys")
                except ValueError:
                    record = None
                if not isinstance(record, dict):
                    raise UserError(f"{path}: line {number} is no JSON object; remove that line")
                records.append(record)
            yield records


def _columns(records: Sequence[dict[str, Any]], prefix: str = "") -> Iterator[tuple[str, Values]]:
    """Yield the dotted keys of all numbers, and the values (N,)."""
    layouts = dict.fromkeys(map(tuple, records))
    by_key: dict[str, Sequence[Any]]
    if len(layouts) == 1:  # as most are; five times as fast
        by_key = dict(zip(*layouts, zip(*map(dict.values, records), strict=True), strict=True))
    else:
        by_key = {key: [record.get(key) for record in records] for key in dict.fromkeys(chain(*layouts))}
    for key, values in by_key.items():
        kinds = set(map(type, values))
        if dict in kinds:
            yield from _columns([value if type(value) is dict else {} for value in values], f"{prefix}{key}.")
        if kinds & {int, float}:
            yield f"{prefix}{key}", np.array(values if kinds == {float} else _floats(values), np.float64)


def _floats(values: Sequence[Any]) -> list[float]:
    """Return numbers as floats; NaN for anything else, and for an integer that no float reaches."""
    numbers = []
    for value in values:
        try:
            numbers.append(float(value) if type(value) in (int, float) else np.nan)
        except OverflowError:
            numbers.append(np.nan)
    return numbers


def _phases(active: list[tuple[int, tuple[str, ...]]]) -> dict[str, list[Interval]]:
    """Return by term the intervals in which it was on; each record stands for what was trained since the last one."""
    if not active:
        return {}
    runs: list[tuple[int, int, tuple[str, ...]]] = []
    start = 0
    for images_seen, names in active:
        if runs and runs[-1][2] == names:
            runs[-1] = (runs[-1][0], images_seen, names)
        else:
            runs.append((start, images_seen, names))
        start = images_seen
    step = -(-len(runs) // MOST_INTERVALS)
    groups = [runs[at : at + step] for at in range(0, len(runs), step)]
    phases: dict[str, list[Interval]] = {name: [] for names in dict.fromkeys(run[2] for run in runs) for name in names}
    for group in groups:
        for term, intervals in phases.items():
            length = sum(end - begin for begin, end, _ in group)
            on = sum(end - begin for begin, end, names in group if term in names)
            begin, end, share = group[0][0], group[-1][1], round(on / max(1, length), 3)
            if on and share == 1 and intervals and intervals[-1][1:] == (begin, 1):
                intervals[-1] = (intervals[-1][0], end, share)
            elif on:
                intervals.append((begin, end, share))
    return phases
