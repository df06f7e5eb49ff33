"""What several transfers of one command have in common: scores over seeds, and where their files are."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceptual_mae.errors import UserError
from perceptual_mae.transfer.encoders import Source


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return mean and sample standard deviation (None for one) of the seeds' scores, and each of them."""
    return {
        "mean": round(math.fsum(values) / len(values), 6),
        "deviation": round(statistics.stdev(values), 6) if len(values) > 1 else None,
        "by_seed": [round(value, 6) for value in values],
    }


def mean_of(values: Sequence[float | None], digits: int) -> float | None:
    """Return the mean of the values that are there, rounded; None where none is."""
    present = [value for value in values if value is not None]
    return round(sum(present) / len(present), digits) if present else None


@dataclass(frozen=True)
class Files:
    """Files of a transfer: they are in one folder, and begin with the same name."""

    folder: Path
    name: str

    @classmethod
    def of(
        cls,
        source: Source,
        command: str,
        recipe: str,
        out: Path | None,
        *,
        frozen: bool,
        limits: Sequence[int | None] = (),
    ) -> "Files":
        """Return those in the folder `out`, by default evaluation/ of the run; UserError where there is none.

        Fewer images (`limits`), other weights or a frozen encoder add to the name.
        """
        if out is not None and out.is_file():
            raise UserError(f"--out: {out} is a file; name a folder")
        if out is None and source.run is None:
            raise UserError(f"--out: {source.words} has no run folder for its scores; name a folder")
        folder = out if out is not None or source.run is None else source.run.path / "evaluation"
        assert folder is not None
        flags = [*(["scratch"] if source.from_scratch else []), *(["frozen"] if frozen else [])]
        averaged = [] if source.ema is None else ["ema" if source.ema else "no_ema"]
        return cls(folder, "_".join([command, recipe, *flags, *averaged, *(str(each) for each in limits if each)]))

    @property
    def result(self) -> Path:
        """The JSON file of scores."""
        return self.folder / f"{self.name}.json"

    @property
    def pictures(self) -> Path:
        """The page of predictions next to the truth."""
        return self.folder / f"{self.name}.png"

    def of_seed(self, seed: int, ending: str) -> Path:
        """Return a file of one seed: its records (metrics.jsonl), its network (safetensors), or what a task writes."""
        return self.folder / f"{self.name}_seed_{seed}.{ending}"
