"""The scores of each image, and their means over images.

`raw` is the generator's whole output, `composite` has the visible pixels of the original. `masked` is of
hidden pixels alone: the mean, over these, of a map that compares the composite with the original. Windows that reach
over the edge of a hidden patch thus contain the visible pixels as they are.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceptual_mae.data.dataset import ImageDataset, file_name
from perceptual_mae.evaluation.accumulators import Gather, ReconstructionBatch
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
    """Scores each image by itself; keeps some numbers an image, and fills `table` when it computes."""

    def __init__(self, measures: Mapping[str, Measure], metrics: Mapping[str, Metric] = METRICS) -> None:
        self._measures = dict(measures)
        lines = {name: metrics[name] for name in measures}
        self._lines = {name: line for name, line in lines.items() if isinstance(line, ImageMetric)}
        self._columns: tuple[str, ...] = ()
        self._chunks: list[tuple[Tensor, Tensor]] = []
        self.num_images = 0
        self.table: ImageTable | None = None

    def update(self, batch: ReconstructionBatch) -> None:
        """Score a batch; ValueError, with the range that arrived, for images outside [0, 1]."""
        self.add(batch.indices, batch.originals, compared_images(batch), batch.hidden)

    def add(
        self,
        indices: Tensor,
        originals: Tensor,
        compared: Iterable[tuple[str, Tensor]],
        hidden: Tensor | None = None,
    ) -> None:
        """Score images by region against the originals, all (B, C, H, W) in [0, 1]; `indices` (B,) are on the CPU.

        hidden (B, 1, H, W): the pixels, 1 = hidden, of which composites have scores of their own.
        """
        scores: dict[str, Tensor] = {}
        self.num_images += len(indices)
        check_unit_range(originals, "an original")
        own = {
            name: measure(originals, originals)
            for name, measure in self._measures.items()
            if self._lines[name].relative
        }
        for region, fake in compared:
            check_unit_range(fake, f"an image of {region}")
            for name, measure in self._measures.items():
                line, values, reference = self._lines[name], measure(fake, originals), own.get(name)
                whole = whole_mean(values) if reference is None else ratio(whole_mean(values), whole_mean(reference))
                scores[f"{region}/{name}"] = image_score(line, whole)
                if hidden is not None and line.masked and region.endswith(COMPOSITE):
                    masked = region.removesuffix(COMPOSITE) + MASKED
                    mean = hidden_mean(values, hidden)
                    if reference is not None:
                        mean = ratio(mean, hidden_mean(reference, hidden))
                    scores[f"{masked}/{name}"] = image_score(line, mean)
        # The scores of a region stay together, in the order of the table.
        regions = list(dict.fromkeys(column.rpartition("/")[0] for column in scores))
        scores = dict(sorted(scores.items(), key=lambda item: regions.index(item[0].rpartition("/")[0])))
        self._columns = tuple(scores)
        if scores:
            self._chunks.append((indices, torch.stack(list(scores.values()), 1).cpu()))

    def compute(self, gather: Gather) -> Mapping[str, Any]:
        """Return the means by region, and fill `table`."""
        empty = (torch.empty(0, dtype=torch.int64), torch.empty(0, len(self._columns), dtype=torch.float64))
        indices, values = (torch.cat(parts) for parts in zip(*(self._chunks or [empty]), strict=True))
        indices, values = gather.rows(indices, values)
        self.table = ImageTable(indices, self._columns, values)
        report: dict[str, Any] = {}
        for column in self._columns if len(indices) else ():
            region, _, name = column.rpartition("/")
            scores = report
            for key in region.split("/") if region.startswith(BASELINE) else ("scores", region):
                scores = scores.setdefault(key, {})
            scores |= mean_score(self._lines[name], name, self.table.column(column))
        return report


def compared_images(batch: ReconstructionBatch) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and images (B, C, H, W) of the raw output, the composite, and the composites of baselines."""
    yield RAW, batch.raw
    yield COMPOSITE, batch.composite
    for name, filled in batch.baselines.items():
        yield f"{BASELINE}{name}/{COMPOSITE}", filled


def whole_mean(values: Tensor) -> Tensor:
    """Return the mean (B,) of a map (B, C, h, w), or values (B,) as they are, in float64."""
    return values.double() if values.ndim == 1 else values.flatten(1).mean(1, dtype=torch.float64)


def hidden_mean(values: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean (B,) in float64 of a map (B, C, h, w) over hidden pixels (B, 1, H, W); NaN where it has none.

    A map that lacks a border is compared with the middle of the mask.
    """
    height, width = values.shape[-2:]
    top, left = (hidden.shape[-2] - height) // 2, (hidden.shape[-1] - width) // 2
    inner = hidden[..., top : top + height, left : left + width]
    total = (values * inner).flatten(1).sum(1, dtype=torch.float64)
    return total / (inner.flatten(1).sum(1, dtype=torch.float64) * values.shape[1])


def ratio(mean: Tensor, reference: Tensor) -> Tensor:
    """Return means (B,) over those of the originals (B,); NaN where an original has 0."""
    return torch.where(reference > 0, mean / reference, torch.nan)


def image_score(line: ImageMetric, mean: Tensor) -> Tensor:
    """Return the scores (B,) of images whose maps have these means (B,)."""
    return mean if line.from_mean is None else line.from_mean(mean)


def mean_score(line: ImageMetric, name: str, scores: Tensor) -> dict[str, Any]:
    """Return what is reported of scores (N,), rounded; images without the score (NaN) are left out, None if all are."""
    scores = scores[~scores.isnan()]
    if not len(scores):
        return {name: None}
    means = {name: float(scores.mean())} if line.summarise is None else line.summarise(name, scores)
    return {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in means.items()}


def write_csv(table: ImageTable, dataset: ImageDataset, path: Path) -> None:
    """Write a line an image: its index in the data set, its file where it has one, and its scores; "" for none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "file", *(column.replace("/", "_") for column in table.columns)])
    for index, values in zip(table.indices.tolist(), table.values.tolist(), strict=True):
        numbers = ["" if math.isnan(value) else f"{value:.{DIGITS}g}" for value in values]
        writer.writerow([index, file_name(dataset, index) or "", *numbers])
    write_atomically(path, text.getvalue())
