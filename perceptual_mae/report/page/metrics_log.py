"""The numbers of metrics.jsonl as columns over images seen, thinned to what a page can hold with extremes kept."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
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
"""So few stay in the caches of a processor."""
LARGE = 32 * 2**20
"""Bytes of all runs' metrics from which on they are read by several processes."""
NOT_DRAWN = ("step", "images_seen")
"""Keys that say where on the axis a record stands."""
MOST_INTERVALS = 400
"""Of a term's phases; with more, each stands for several records and says on which share of them the term was on."""
ALARM = re.compile(r"^\S+ \S+ WARNING step (\d{1,15}): (.*)$")
MOST_ALARMS = 200

_KEPT = b"\0:,+-.0123456789"
_OTHER = bytes(byte for byte in range(256) if byte not in _KEPT)
_PLAIN = bytes.maketrans(b"\0:", b"e,")
_NUMBER = re.compile(rb"([:\[,] *)-?[0-9][0-9.eE+\0-]*")
FEWEST_ALIKE = 16
"""Lines of one layout; fewer are read one by one."""

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
    chunks = list(_chunks(path / "metrics.jsonl"))
    columns: dict[str, tuple[Values, Values]] = {}
    for key in dict.fromkeys(chain.from_iterable(chunk.columns for chunk in chunks)):
        parts = [(chunk.steps, chunk.columns[key]) for chunk in chunks if key in chunk.columns]
        steps, values = (np.concatenate(each) for each in zip(*parts, strict=True))
        is_there = np.isfinite(values) & np.isfinite(steps)
        if key not in NOT_DRAWN and is_there.any():
            order = np.argsort(steps[is_there], kind="stable")
            columns[key] = steps[is_there][order] * batch_size, values[is_there][order]
    epochs: dict[int, int] = {}
    for at, epoch in zip(*columns.pop("epoch", (np.empty(0), np.empty(0))), strict=True):
        epochs[int(epoch)] = max(int(at), epochs.get(int(epoch), 0))
    active = [(int(step) * batch_size, names) for chunk in chunks for step, names in chunk.active if np.isfinite(step)]
    return MetricsLog(columns, epochs, _phases(sorted(active, key=lambda each: each[0])))


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
    """Some records: steps (N,), numbers (N,) by dotted key with NaN for none, and the terms that were on by step."""

    steps: Values
    columns: dict[str, Values]
    active: list[tuple[float, tuple[str, ...]]]

    @classmethod
    def of(cls, records: Sequence[dict[str, Any]]) -> "_Chunk":
        columns = dict(_columns(records))
        steps = columns.get("step", np.full(len(records), np.nan))
        pairs = zip(steps.tolist(), [record.get("active") for record in records], strict=True)
        return cls(steps, columns, [(step, tuple(map(str, each))) for step, each in pairs if isinstance(each, list)])

    @classmethod
    def of_alike(cls, lines: list[bytes]) -> "_Chunk | None":
        """Read lines that have the same layout at once, some three times as fast; None where they may not have it.

        All numbers of the text are read, those in names, such as 1 in l1, too: these must be the same in all lines.
        Nor may a line have another count of e, which would be an exponent without a sign.
        """
        text, line = _marked(b"".join(lines)), _marked(lines[0])
        if text.count(b"e") != len(lines) * line.count(b"e"):
            return None
        first = from_json(lines[0])
        expected = dict(_columns([first]))
        try:
            ones, twos = (_numbers(_NUMBER.sub(rb"\g<1>" + digit, line)) for digit in (b"1", b"2"))
            is_number = ones != twos
            table = _numbers(text).reshape(len(lines), len(is_number))
        except (ValueError, OverflowError):
            return None
        if len(expected) != is_number.sum() or (table != table[0])[:, ~is_number].any():
            return None
        if table[0, is_number].tolist() != [value for (value,) in expected.values()]:
            return None
        columns = dict(zip(expected, np.ascontiguousarray(table[:, is_number].T), strict=True))
        alike = cls.of([first])
        steps = columns.get("step", np.full(len(lines), np.nan))
        return cls(steps, columns, [(step, names) for step in steps.tolist() for _, names in alike.active])


def _chunks(path: Path) -> Iterator[_Chunk]:
    """Yield the records of a file, some at a time; a last line that is being written is left out."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        while lines := list(islice(file, LINES_AT_ONCE)):
            by_layout: dict[bytes, list[bytes]] = {}
            for line in lines:
                if line.endswith(b"\n"):
                    by_layout.setdefault(line.translate(None, b"0123456789.+-e"), []).append(line)
            for alike in by_layout.values():
                try:
                    chunk = _Chunk.of_alike(alike) if len(alike) >= FEWEST_ALIKE else None
                    yield chunk or _Chunk.of([_record(line) for line in alike])
                except ValueError:
                    raise _damaged(path) from None


def _record(line: bytes) -> dict[str, Any]:
    """Return the record of a line; ValueError where it is no JSON object."""
    record = from_json(line, cache_strings="keys")
    if not isinstance(record, dict):
        raise ValueError
    return record


def _damaged(path: Path) -> UserError:
    """Return the refusal of a file's first line that is no JSON object."""
    number = 0
    with path.open("rb") as file, suppress(ValueError):
        for line in file:
            number += 1
            _record(line)
    return UserError(f"{path}: line {number} is no JSON object; remove that line")


def _marked(text: bytes) -> bytes:
    """Return a text whose exponents have a zero byte for their e; one without a sign keeps it."""
    return text.replace(b"e-", b"\0-").replace(b"e+", b"\0+")


def _numbers(marked: bytes) -> Values:
    """Return all numbers of a text, those in names, too; ValueError where a name's are none, such as 1.2.3."""
    text = marked.translate(_PLAIN, _OTHER)
    while b",," in text:
        text = text.replace(b",,", b",")
    return np.array(from_json(b"[" + text.strip(b",") + b"]"), np.float64)


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
