"""The cells of a grid: every combination of values, each under a name made of them. Nothing here imports torch."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from perceptual_mae.errors import UserError

LAYER = "layer"
"""An axis of this name takes layers, not values: recipes, methods or files, laid over those of the command."""
SEED = "training.seed"
LONGEST_NAME = 100
_OPEN, _CLOSE, _QUOTES = "[{(", "]})", "'\""


@dataclass(frozen=True)
class Axis:
    """A key and its values as they were typed."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its folder's name, its value on each axis, and its seed where the sweep has seeds."""

    name: str
    point: dict[str, str]
    seed: int | None

    def arguments(self, base: Sequence[str]) -> list[str]:
        """Return the layers and overrides of this run; `base` are those of the command."""
        layers = [word for word in base if "=" not in word] + [v for k, v in self.point.items() if k == LAYER]
        overrides = [word for word in base if "=" in word]
        overrides += [f"{key}={value}" for key, value in self.point.items() if key != LAYER]
        return layers + overrides + ([] if self.seed is None else [f"{SEED}={self.seed}"])


def parse_axis(text: str) -> Axis:
    """Read `key=a,b,c`; commas inside brackets and quotes belong to a value. Raises UserError."""
    key, equals, rest = text.partition("=")
    values = split_values(rest)
    if not key.strip() or not equals or not all(values):
        raise UserError(f"--grid: {text!r} is no key=a,b,c; give a key and its values, as optimizer.lr=1e-3,2e-3")
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise UserError(f"--grid: {key} has {', '.join(twice)} twice; give each value once")
    return Axis(key.strip(), tuple(values))


def split_values(text: str) -> list[str]:
    """Cut a text at the commas that stand outside brackets and quotes."""
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in _QUOTES:
            quote = letter
        depth += (letter in _OPEN) - (letter in _CLOSE) if not quote else 0
        if letter == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values]


def make_cells(axes: Sequence[Axis], seeds: Sequence[int]) -> list[Cell]:
    """Return all combinations, seeds fastest. Raises UserError for a key that is named twice."""
    keys = [axis.key for axis in axes] + ([SEED] if seeds else [])
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise UserError(f"--grid: {', '.join(twice)} is given twice; name each key once (seeds go to --seeds)")
    words = _short(keys)
    chosen: Sequence[int | None] = seeds or [None]
    cells = list[Cell]()
    for values in product(*(axis.values for axis in axes)):
        point = dict(zip(keys, values, strict=False))
        for seed in chosen:
            settings = [*point.items(), *([(SEED, str(seed))] if seed is not None else [])]
            name = _bounded("_".join(f"{words[key]}-{_plain(key, value)}" for key, value in settings))
            taken = sum(cell.name == name or cell.name.startswith(f"{name}~") for cell in cells)
            cells.append(Cell(f"{name}~{taken + 1}" if taken else name or "run", point, seed))
    return cells


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Return a word for each key: its last part, or all of it where two end alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: key if last.count(word) > 1 else word for key, word in zip(keys, last, strict=True)}


def _plain(key: str, value: str) -> str:
    """Return a value as a part of a folder's name."""
    text = Path(value).stem if key == LAYER else value
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "empty"


def _bounded(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
