"""The scores of each image, and their means over images.

`raw` is the generator's whole output, `composite` has the visible pixels of the original. `masked` looks at hidden
pixels alone: the mean, over these, of a map that compares the composite with the original. Windows that reach over the
edge of a hidden patch thus see the visible pixels as they are.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceptual_mae.data.dataset import ImageDataset, file_name
from perceptual_mae.evaluation.accumulators import Gather, Seen
from perceptual_mae.evaluation.metrics import METRICS
from perceptual_mae.evaluation.metrics.protocol import ImageMetric, Measure, Metric
from perceptual_mae.files import write_atomically
from perceptual_mae.images import check_unit_range

RAW, COMPOSITE, MASKED = "raw", "composite", "masked"
BASELINE = "baselines/"
DIGITS = 6


@dataclass(frozen=True)
class ImageTable:
    """Scores (N, K) of images by column, "raw/l1" and so on, in float64 and in the order of the data set."""

    indices: Tensor
    columns: tuple[str, ...]
    values: Tensor

    def column(self, name: str) -> Tensor:
        """Return one score of all images (N,)."""
        return self.values[:, self.columns.index(name)]


class ImageScores:
    """The observer that scores each image by itself; keeps some numbers an image, and `table` once it has finished."""

    def __init__(self, measures: Mapping[str, Measure], metrics: Mapping[str, Metric] = METRICS) -> None:
        self._measures = dict(measures)
        self._lines = {name: metrics[name] for name in measures}
        self._columns: tuple[str, ...] = ()
        self._chunks: list[tuple[Tensor, Tensor]] = []
        self.num_images = 0
        self.table: ImageTable | None = None

    def see(self, seen: Seen) -> None:
        """Score a batch; ValueError, with the range that arrived, for images outside [0, 1]."""
        scores: dict[str, Tensor] = {}
        self.num_images += len(seen.indices)
        check_unit_range(seen.originals, "an original")
        for subject, fake in subjects(seen):
            check_unit_range(fake, f"an image of {subject}")
            for name, measure in self._measures.items():
                line = self._lines[name]
                assert isinstance(line, ImageMetric)
                found = measure(fake, seen.originals)
                scores[f"{subject}/{name}"] = finish(line, whole_mean(found))
                if line.masked and subject.endswith(COMPOSITE):
                    masked = subject.removesuffix(COMPOSITE) + MASKED
                    scores[f"{masked}/{name}"] = finish(line, hidden_mean(found, seen.hidden))
        # A subject's scores stand together, in the order of the table.
        places = list(dict.fromkeys(column.rpartition("/")[0] for column in scores))
        scores = dict(sorted(scores.items(), key=lambda item: places.index(item[0].rpartition("/")[0])))
        self._columns = tuple(scores)
        if scores:
            self._chunks.append((seen.indices, torch.stack(list(scores.values()), 1).cpu()))

    def finish(self, gather: Gather) -> Mapping[str, Any]:
        """Return the means by subject, and fill `table`."""
        empty = (torch.empty(0, dtype=torch.int64), torch.empty(0, len(self._columns), dtype=torch.float64))
        indices, values = (torch.cat(parts) for parts in zip(*(self._chunks or [empty]), strict=True))
        indices, values = gather.rows(indices, values)
        self.table = ImageTable(indices, self._columns, values)
        report: dict[str, Any] = {}
        for column in self._columns if len(indices) else ():
            subject, _, name = column.rpartition("/")
            place = report
            for part in subject.split("/") if subject.startswith(BASELINE) else ("scores", subject):
                place = place.setdefault(part, {})
            line = self._lines[name]
            assert isinstance(line, ImageMetric)
            place |= summarise(line, name, self.table.column(column))
        return report


def subjects(seen: Seen) -> Iterator[tuple[str, Tensor]]:
    """List what is compared with the originals: the raw output, the composite, and the composites of baselines."""
    yield RAW, seen.raw
    yield COMPOSITE, seen.composite
    for name, filled in seen.baselines.items():
        yield f"{BASELINE}{name}/{COMPOSITE}", filled


def whole_mean(found: Tensor) -> Tensor:
    """Return the mean (B,) of a map (B, C, h, w), or values (B,) as they are, in float64."""
    return found.double() if found.ndim == 1 else found.flatten(1).mean(1, dtype=torch.float64)


def hidden_mean(found: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean (B,) in float64 of a map (B, C, h, w) over hidden pixels (B, 1, H, W); NaN where it has none.

    A map that lacks a border is compared with the middle of the mask.
    """
    height, width = found.shape[-2:]
    top, left = (hidden.shape[-2] - height) // 2, (hidden.shape[-1] - width) // 2
    inner = hidden[..., top : top + height, left : left + width]
    total = (found * inner).flatten(1).sum(1, dtype=torch.float64)
    return total / (inner.flatten(1).sum(1, dtype=torch.float64) * found.shape[1])


def finish(line: ImageMetric, mean: Tensor) -> Tensor:
    """Return an image's score (B,) of the mean of its map."""
    return mean if line.finish is None else line.finish(mean)


def summarise(line: ImageMetric, name: str, scores: Tensor) -> dict[str, Any]:
    """Return what is reported of scores (N,), rounded; images without the score (NaN) are left out, None if all are."""
    scores = scores[~scores.isnan()]
    if not len(scores):
        return {name: None}
    found = {name: float(scores.mean())} if line.summarise is None else line.summarise(name, scores)
    return {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in found.items()}


def write_csv(table: ImageTable, dataset: ImageDataset, path: Path) -> None:
    """Write a line an image: its index in the data set, its file where it has one, and its scores; "" for none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "file", *(column.replace("/", "_") for column in table.columns)])
    for index, values in zip(table.indices.tolist(), table.values.tolist(), strict=True):
        numbers = ["" if math.isnan(value) else f"{value:.{DIGITS}g}" for value in values]
        writer.writerow([index, file_name(dataset, index) or "", *numbers])
    write_atomically(path, text.getvalue())
