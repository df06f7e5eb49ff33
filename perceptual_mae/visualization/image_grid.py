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
from perceptual_mae.images import mask_image, to_uint8

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
    names = [textwrap.wrap(name, max(1, width // LETTER)) for name in columns]
    header = HEADER + LINE * (max(map(len, names)) - 1)
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


def save(page: Image.Image, path: Path) -> None:
    """Write a sheet as PNG, complete or not at all; folders on the way are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        page.save(partial, format="PNG")


def _magnify(images: Tensor) -> Tensor:
    factor = max(1, -(-SMALLEST_SIDE // min(images.shape[2:])))
    return F.interpolate(images, scale_factor=factor, mode="nearest") if factor > 1 else images
