"""The pictures of run folders for the page: sheets cut into images, images of one kind put into one strip each."""

import base64
import csv
import hashlib
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, features
from torch import Tensor

from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.data.decoding import UnreadableImageError, read_header, read_image
from perceptual_mae.evaluation.reconstruction.best_and_worst import VIEWS
from perceptual_mae.images import Size, patchify, to_uint8
from perceptual_mae.report.page.description import architecture_of
from perceptual_mae.visualization.image_grid import GREY, cut

MAX_PIXELS = 2**25
"""Of a sheet; a larger one is left out."""
MOST_IMAGES = 12
"""Of one sheet of samples."""
MOST_SNAPSHOTS = 60
"""Of one run."""
MOST_RANKED = 5
"""Best images, and worst ones, of one run."""
LOSSLESS_SIDE = 64
"""Larger images are compressed with losses."""
QUALITY = 82
STRIP = 16_000
"""Pixels of the longer side that WebP can store, nearly."""

EPOCH = re.compile(r"epoch_(\d+)\.png")
ATTENTION = re.compile(r"attention_(\d+)\.png")


@dataclass
class Budget:
    """Characters that pictures may still take, and sentences on what was left out."""

    left: int
    notes: list[str] = field(default_factory=list)

    def take(self, pictures: Sequence[str]) -> bool:
        """Take what pictures need, or return False where that is more than is left."""
        size = sum(map(len, pictures))
        if size > self.left:
            return False
        self.left -= size
        return True


@dataclass(frozen=True)
class Samples:
    """A sheet of samples: strips of originals and raw outputs, and each image's mask, "1" for a hidden patch."""

    original: str
    raw: str
    masks: tuple[str, ...]

    @property
    def scene(self) -> str:
        """Name of the images and masks: runs that have the same are shown next to each other."""
        return hashlib.sha256("/".join((self.original, *self.masks)).encode()).hexdigest()


def read_snapshots(path: Path, config: RunConfig, epochs: dict[int, int], notes: list[str]) -> dict[int, Samples]:
    """Return the sample sheets of a run by epoch; `epochs` are those that metrics.jsonl has records of."""
    files = sorted(
        (int(match[1]), file)
        for file in _files(path / "images", "epoch_*.png")
        if (match := EPOCH.fullmatch(file.name)) and int(match[1]) in epochs
    )
    kept = spread(files, MOST_SNAPSHOTS)
    if len(kept) < len(files):
        notes.append(f"{path}: {len(kept)} of {len(files)} sheets of samples are shown")
    samples = {}
    for epoch, file in kept:
        try:
            samples[epoch] = _samples(file, file.stat().st_mtime_ns, config.data.size, _grid(config))
        except (UnreadableImageError, OSError, ValueError) as failure:
            notes.append(_left_out(file, failure))
    return samples


def read_ranked(path: Path, config: RunConfig, report: dict[str, Any], stem: str) -> dict[str, Any]:
    """Return the best and the worst images of a report of `pmae evaluate`, best first, from its picture and lines.

    Raises ValueError, UnreadableImageError or OSError where they cannot be had.
    """
    file = path / "evaluation" / f"{stem}.png"
    size = _size(report.get("transform", {}).get("image_size"), config.data.size)
    views = _cut(file, VIEWS, size, has_notes=True)
    count = len(views["original"])
    best = min(MOST_RANKED, -(-count // 2))
    worst = min(MOST_RANKED, count - best)
    rows = [*range(best), *range(count - worst, count)]
    ranks = [f"best {row + 1}" if row < best else f"worst {count - row}" for row in rows]
    labels = _scores_of(file.with_suffix(".csv"), count)
    shown = {name: encode(views[name][rows]) for name in ("original", "composite")}
    masks = _masks(views["masked"][rows], _grid(config, size))
    return {
        **shown,
        **_geometry(config, size),
        "masks": masks,
        "labels": [", ".join([rank, *labels[row : row + 1]]) for rank, row in zip(ranks, rows, strict=True)],
    }


def read_attention(path: Path, config: RunConfig, notes: list[str]) -> dict[str, Any] | None:
    """Return the newest attention maps that `pmae visualize --attention` drew of a run alone, or None.

    `patches` has what each patch of the first images attends to, where that is there.
    """
    files = sorted(file for file in _files(path / "images", "attention_*.png") if ATTENTION.fullmatch(file.name))
    if not files:
        return None
    heads = range(architecture_of(config).heads)
    names = ["original", "mean", *(f"head {head + 1}" for head in heads), "kept"]
    try:
        views = _cut(files[-1], names, config.data.size)
    except (UnreadableImageError, OSError, ValueError) as failure:
        notes.append(_left_out(files[-1], failure))
        return None
    count = min(MOST_IMAGES, len(views["original"]))
    strips = {name: encode(images[:count]) for name, images in views.items()}
    shown = {"views": strips, "count": count, **_geometry(config), "file": files[-1].name}
    by_patch = files[-1].with_name(files[-1].name.replace("attention_", "attention_by_patch_"))
    if by_patch.is_file():
        try:
            shown |= _patch_maps(by_patch, math.prod(_grid(config)), count)
        except (UnreadableImageError, OSError, ValueError) as failure:
            notes.append(_left_out(by_patch, failure))
    return shown


def _patch_maps(file: Path, patches: int, most: int) -> dict[str, Any]:
    """Return what each patch attends to, a grey picture as a data URI, and of how many images: at most so many."""
    header = read_header(file, max_pixels=MAX_PIXELS)
    if header.width != patches or not header.height or header.height % patches:
        raise ValueError(f"{header.width}x{header.height} pixels are no maps of {patches} patches")
    maps = read_image(file, max_pixels=MAX_PIXELS)[0, : most * patches]
    buffer = io.BytesIO()
    Image.fromarray(maps.numpy()).save(buffer, "PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"patches": uri, "mapped": len(maps) // patches}


def geometry_of(config: RunConfig, samples: Samples) -> dict[str, Any]:
    """Return what the page needs to draw samples."""
    return {"original": samples.original, "masks": samples.masks, **_geometry(config)}


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` items (two or more), evenly spread, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]


def encode(images: Tensor) -> str:
    """Return images (B, 3, H, W) of uint8, one below the other, as a data URI: without losses where they are small."""
    picture = Image.fromarray(images.permute(0, 2, 3, 1).flatten(0, 1).contiguous().numpy())
    buffer = io.BytesIO()
    if not features.check("webp"):
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        is_small = max(images.shape[2:]) <= LOSSLESS_SIDE
        picture.save(buffer, "WEBP", lossless=is_small, quality=100 if is_small else QUALITY, method=4)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@lru_cache(maxsize=1024)  # --live reads the same files again and again
def _samples(file: Path, modified: int, size: Size, grid: Size) -> Samples:
    views = _cut(file, VIEWS, size)
    count = min(MOST_IMAGES, max(1, STRIP // size[0]), len(views["original"]))
    original, masked, raw = (views[name][:count] for name in ("original", "masked", "raw"))
    return Samples(encode(original), encode(raw), tuple(_masks(masked, grid)))


def _cut(file: Path, names: Sequence[str], size: Size, *, has_notes: bool = False) -> dict[str, Tensor]:
    header = read_header(file, max_pixels=MAX_PIXELS)
    page = torch.empty(3, header.height, header.width, dtype=torch.uint8, device="meta")
    if cut(page, names, size, has_notes=has_notes) is None:
        raise ValueError(f"{header.width}x{header.height} pixels are no sheet of {size[1]}x{size[0]} images")
    views = cut(read_image(file, max_pixels=MAX_PIXELS), names, size, has_notes=has_notes)
    assert views is not None
    return views


def _masks(masked: Tensor, grid: Size) -> list[str]:
    """Return each image's mask, "1" for a hidden patch: in images (B, 3, H, W) these are grey all over."""
    grey = to_uint8(torch.tensor(GREY))
    patches = patchify(masked, masked.shape[2] // grid[0])
    hidden = (patches == grey).all(2)
    return ["".join("1" if patch else "0" for patch in row) for row in hidden.tolist()]


def _scores_of(file: Path, count: int) -> list[str]:
    """Return the label of each row of a sheet of `count` images: index, file and PSNR of hidden pixels."""
    try:
        with file.open(newline="", errors="replace") as lines:
            rows = list(csv.DictReader(lines))
        scored = [
            (-float(row["masked_psnr"]), int(row["index"]), row.get("file")) for row in rows if row["masked_psnr"]
        ]
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        return []
    scored.sort(key=lambda row: row[:2])
    if len(scored) > count:
        half = count // 2
        scored = scored[:half] + scored[len(scored) - half :]
    if len(scored) != count or not all(math.isfinite(score) for score, *_ in scored):
        return []
    return [f"image {index}{f' ({name})' if name else ''}, {-score:.2f} dB" for score, index, name in scored]


def _geometry(config: RunConfig, size: Size | None = None) -> dict[str, Any]:
    return {"size": list(size or config.data.size), "grid": list(_grid(config, size))}


def _grid(config: RunConfig, size: Size | None = None) -> Size:
    height, width = size or config.data.size
    patch = architecture_of(config).patch_size
    return height // patch, width // patch


def _size(given: Any, otherwise: Size) -> Size:
    is_size = isinstance(given, list) and len(given) == 2 and all(type(side) is int and side > 0 for side in given)
    return (given[0], given[1]) if is_size else otherwise


def _files(folder: Path, pattern: str) -> list[Path]:
    return [file for file in folder.glob(pattern) if file.is_file()]


def _left_out(file: Path, failure: Exception) -> str:
    reason = failure.reason if isinstance(failure, UnreadableImageError) else str(failure)
    return f"{file}: left out ({reason})"
