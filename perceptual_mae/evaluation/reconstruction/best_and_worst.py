"""The images that were reconstructed best and worst, by the PSNR of hidden pixels, for a sheet of pictures."""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from perceptual_mae.evaluation.accumulators import Gather, ReconstructionBatch
from perceptual_mae.evaluation.metrics.pixels import decibels, squared_error
from perceptual_mae.evaluation.reconstruction.per_image import hidden_mean
from perceptual_mae.images import to_uint8
from perceptual_mae.visualization.image_grid import GREY, sheet

COUNT = 10
VIEWS = ("original", "masked", "raw", "composite")


class BestAndWorst:
    """Keeps the pictures of the `count` best and worst images, however many there are."""

    def __init__(self, count: int = COUNT) -> None:
        self._count = count
        self._indices = torch.empty(0, dtype=torch.int64)
        self._scores = torch.empty(0, dtype=torch.float64)
        self._pictures: Tensor | None = None  # uint8 (n, 4, C, H, W)

    def update(self, batch: ReconstructionBatch) -> None:
        """Take in a batch; images of which nothing is hidden do not count."""
        scores = decibels(hidden_mean(squared_error(batch.composite, batch.originals), batch.hidden)).cpu()
        masked = torch.lerp(batch.originals, torch.full_like(batch.originals, GREY), batch.hidden)
        views = (batch.originals, masked, batch.raw, batch.composite)
        pictures = torch.stack([to_uint8(view).cpu() for view in views], 1)
        self._keep(*(part[~scores.isnan()] for part in (batch.indices, scores, pictures)))

    def compute(self, gather: Gather) -> Mapping[str, Any]:
        """Gather what all processes kept; the report gets nothing."""
        _, scores = gather.rows(self._indices, self._scores)
        pictures = torch.empty(0, dtype=torch.uint8) if self._pictures is None else self._pictures
        indices, pictures = gather.rows(self._indices, pictures)
        self._pictures, self._indices, self._scores = None, indices[:0], scores[:0]
        if len(indices):
            self._keep(indices, scores, pictures)
        return {}

    def page(self) -> Image.Image | None:
        """Return the sheet, best images first, or None where nothing was hidden anywhere."""
        if self._pictures is None or not len(self._indices):
            return None
        best = min(self._count, -(-len(self._indices) // 2))
        notes = []
        for row, (index, score) in enumerate(zip(self._indices.tolist(), self._scores.tolist(), strict=True)):
            rank = f"best {row + 1}" if row < best else f"worst {len(self._indices) - row}"
            notes.append(f"{rank}\nimage {index}\nhidden pixels\n{score:.2f} dB")
        views = self._pictures.float() / 255
        return sheet({name: views[:, row] for row, name in enumerate(VIEWS)}, notes)

    def _keep(self, indices: Tensor, scores: Tensor, pictures: Tensor) -> None:
        """Keep the best and the worst of these and of those before, best first; equals go by their index."""
        if self._pictures is not None:
            indices, scores = torch.cat([self._indices, indices]), torch.cat([self._scores, scores])
            pictures = torch.cat([self._pictures, pictures])
        order = sorted(range(len(indices)), key=lambda row: (-float(scores[row]), int(indices[row])))
        if len(order) > 2 * self._count:
            order = order[: self._count] + order[-self._count :]
        self._indices, self._scores, self._pictures = indices[order], scores[order], pictures[order]
