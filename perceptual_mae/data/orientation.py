"""The EXIF orientation of a picture: tag 274 alone, whatever the rest of its metadata is worth."""

import struct
from collections.abc import Mapping
from typing import Any

from torch import Tensor

ORIENTATION = 274
PREFIX = b"Exif\0\0"
ENTRY_BYTES = 12
NUMBERS = {1: "B", 3: "H", 4: "I"}
"""TIFF's types of whole numbers: byte, short, long."""


def exif_orientation(exif: bytes) -> int:
    """Return the orientation (1 to 8) that EXIF data state, or 1 where it is missing, cut off or of another type.

    Only the first directory is read, and in it nothing but this tag (EXIF 2.32, 4.6.2 and 4.6.4).
    """
    while exif.startswith(PREFIX):  # some programs write it twice
        exif = exif[len(PREFIX) :]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, first)
        for place in range(first + 2, first + 2 + ENTRY_BYTES * entries, ENTRY_BYTES):
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, place)
            if tag == ORIENTATION and kind in NUMBERS and count == 1:
                (value,) = struct.unpack_from(f"{order}{NUMBERS[kind]}", exif, place + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:  # cut off
        pass
    return 1


def metadata_orientation(info: Mapping[Any, Any]) -> int:
    """Return the orientation in the metadata of a Pillow image that has been loaded (PNG may have it at the end)."""
    exif = info.get("exif")
    if isinstance(exif, bytes):
        return exif_orientation(exif)
    profile = info.get("Raw profile type exif")  # as ImageMagick once wrote it into PNG: three lines, then hexadecimal
    if isinstance(profile, str):
        try:
            return exif_orientation(bytes.fromhex("".join(profile.split("\n")[3:])))
        except ValueError:
            return 1
    return 1


def turn_upright(image: Tensor, orientation: int) -> Tensor:
    """Return an image (C, H, W), stored under an EXIF orientation of 1 to 8, as it is to be shown."""
    if orientation > 4:
        image = image.transpose(-1, -2)
    if orientation in (2, 3, 6, 7):
        image = image.flip(-1)
    if orientation in (3, 4, 7, 8):
        image = image.flip(-2)
    return image.contiguous()
