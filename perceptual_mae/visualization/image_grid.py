"""Sheets of pictures: one image a row, one view of it a column."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from perceptual_mae.files import replacing
from perceptual_mae.generator.masked_autoencoder import Reconstruction
from perceptual_mae.images import Size, mask_image, to_uint8

GREY = 0.5
MARGIN, HEADER, NOTES = 4, 16, 132
LETTER, LINE = 6, 14
"""Pixels of a letter and of a further line of a heading."""
SMALLEST_SIDE = 96
"""Images below this side are magnified by whole pixels, so that a person can see them."""


def reconstruction_columns(images: Tensor, reconstruction: Reconstruction) -> dict[str, Tensor]:
    """Return the usual views, each (B, C, H, W): original, masked, raw output, composite."""
    hidden = mask_image(reconstruction.mask, reconstruction.grid, (images.shape[2], images.shape[3]))
    return {
        "original": images,
        "masked": torch.lerp(images, torch.full_like(images, GREY), hidden),
        "raw": reconstruction.pyramid[0],
        "composite": reconstruction.composite(images),
    }


def sheet(columns: dict[str, Tensor], notes: Sequence[str] = ()) -> Image.Image:
    """Lay out columns of images (B, C, H, W) in [0, 1] under their names: the first three channels, or one.

    Notes, one a row, stand to the right of the images.
    """
    views = [_magnify(to_uint8(images.cpu())) for images in columns.values()]
    count, _, height, width = views[0].shape
    names, header = _headings(list(columns), width)
    right = len(views) * (width + MARGIN) + MARGIN
    page = Image.new("RGB", (right + (NOTES if notes else 0), count * (height + MARGIN) + MARGIN + header), "white")
    draw = ImageDraw.Draw(page)
    for row, note in enumerate(notes):
        draw.multiline_text((right + MARGIN, header + MARGIN + row * (height + MARGIN)), note, fill="black")
    for column, (name, images) in enumerate(zip(names, views, strict=True)):
        x = MARGIN + column * (width + MARGIN)
        draw.text((x, 2), "\n".join(name), fill="black")
        for row, image in enumerate(images):
            shown = image[:3] if len(image) >= 3 else image[:1]
            pixels = shown.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
            page.paste(Image.fromarray(pixels), (x, header + MARGIN + row * (height + MARGIN)))
    return page


def cut(page: Tensor, names: Sequence[str], size: Size, *, has_notes: bool = False) -> dict[str, Tensor] | None:
    """Return the columns, uint8 (B, 3, H, W) by name, of a page that `sheet` laid out, or None for any other picture.

    page: uint8 (3, h, w); names: of its columns; size: height and width of the images that it was given.
    """
    factor = _magnification(size)
    height, width = size[0] * factor, size[1] * factor
    _, header = _headings(names, width)
    count, excess = divmod(page.shape[1] - MARGIN - header, height + MARGIN)
    right = len(names) * (width + MARGIN) + MARGIN
    if excess or count < 1 or page.shape[2] != right + (NOTES if has_notes else 0):
        return None
    rows = page[:, header + MARGIN :].unfold(1, height, height + MARGIN)[:, :count]  # (3, B, w, h)
    columns = rows[:, :, MARGIN:right].unfold(2, width, width + MARGIN)  # (3, B, columns, h, w)
    images = columns[..., ::factor, ::factor].permute(2, 1, 0, 3, 4)
    return dict(zip(names, images, strict=True))


def save(page: Image.Image, path: Path) -> None:
    """Write a sheet as PNG, complete or not at all; folders on the way are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        page.save(partial, format="PNG")


def _headings(names: Sequence[str], width: int) -> tuple[list[list[str]], int]:
    """Return the lines of each heading, and the pixels that all take above the images."""
    lines = [textwrap.wrap(name, max(1, width // LETTER)) for name in names]
    return lines, HEADER + LINE * (max(map(len, lines)) - 1)


def _magnification(size: Size) -> int:
    return max(1, -(-SMALLEST_SIDE // min(size)))


def _magnify(images: Tensor) -> Tensor:
    factor = _magnification((images.shape[2], images.shape[3]))
    return F.interpolate(images, scale_factor=factor, mode="nearest") if factor > 1 else images
