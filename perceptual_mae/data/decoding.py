"""Decoding of image files to upright uint8 RGB tensors, without alpha; the header is checked before any pixel."""

import functools
import importlib
import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from perceptual_mae.data.orientation import ORIENTATION, metadata_orientation, turn_upright
from perceptual_mae.errors import UserError
from perceptual_mae.images import Size

try:  # The fast path; torchvision announces its removal, and Pillow then reads everything.
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # pragma: no cover
    decode_jpeg = None

MAX_PIXELS = 178_956_970
"""Pillow's own limit, beyond which it refuses an image."""
MAX_BYTES_PER_PIXEL = 16
"""Bounds the size of a file: twice what four channels of 16 bits take without compression."""
FORMATS = ("PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "ICO", "TGA")
"""What is read, whatever a file's name says. Not EPS, for which Pillow runs another program."""
JPEG_START = b"\xff\xd8\xff"
HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
HEIF_REMEDY = "HEIC is read with pillow-heif: pip install pillow-heif"
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
SPECIAL_FILES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnreadableImageError(Exception):
    """A file (`path`) that is no image, is truncated or cannot be opened, with the `reason` in one line."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class EncodedImage:
    """The contents of an image file that is part of another file, and its name in messages."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


Source = str | Path | EncodedImage
"""What an image is read from."""


@dataclass(frozen=True)
class Header:
    """What a file says of its image before any pixel is decoded: its size in pixels as stored, its orientation.

    mode: what a pixel is, in Pillow's words: RGB, L (grey), P (palette), CMYK, I;16 and the like.
    """

    width: int
    height: int
    is_sixteen_bit: bool
    orientation: int = 1
    mode: str = "RGB"

    @property
    def upright_size(self) -> Size:
        """Height and width of the image as it is to be shown."""
        return (self.width, self.height) if self.orientation > 4 else (self.height, self.width)


def read_image(path: Source, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return the image of a file as uint8 RGB (3, H, W): EXIF rotation applied, alpha laid over white, 16 bits scaled.

    16 bits keep their fixed scale, 65535 is white: a file that stores 12 bits in 16 is dark. Raises
    UnreadableImageError, for more than `max_pixels` before anything is decoded.
    """
    with _opened(path, max_pixels) as (file, picture):
        if decode_jpeg is not None and isinstance(picture, _JpegFile):
            file.seek(0)
            image = _decode_jpeg(file.read())
            if image is not None:
                return turn_upright(image, metadata_orientation(picture.info))
        orientation = _take_tiff_orientation(picture)
        stored = picture.copy()  # decodes
        if orientation is None:
            orientation = metadata_orientation(picture.info)
        return turn_upright(_to_tensor(to_rgb(stored)), orientation)


def read_jpeg(path: Source, *, max_pixels: int = MAX_PIXELS) -> tuple[bytes, int]:
    """Return the file of a JPEG of RGB or grey pixels, and its EXIF orientation; nothing, and 1, for all other files.

    Raises UnreadableImageError where the header is enough to know that it cannot be read.
    """
    with _opened(path, max_pixels) as (file, picture):
        if not isinstance(picture, _JpegFile) or picture.mode not in ("RGB", "L"):
            return b"", 1
        file.seek(0)
        return file.read(), metadata_orientation(picture.info)


def decode_jpegs(encoded: list[Tensor], device: torch.device) -> list[Tensor | None]:
    """Return the images of JPEGs, each uint8 (N,), as stored: uint8 (3, H, W) on `device`, None for broken ones.

    Raises UserError where this torchvision does not decode.
    """
    if decode_jpeg is None:
        raise UserError("data.decode is device, which this torchvision does not offer; set it to workers")
    if not encoded:
        return []
    try:
        return list(decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # of one of them, and no image is returned
        return [None] if len(encoded) == 1 else [decode_jpegs([one], device)[0] for one in encoded]


def read_header(path: Source, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Return what a file's header says. Raises UnreadableImageError where that is enough to know it cannot be read."""
    with _opened(path, max_pixels) as (_, picture):
        orientation = _take_tiff_orientation(picture) or metadata_orientation(picture.info)
        return Header(*picture.size, picture.mode in SIXTEEN_BIT_MODES, orientation, picture.mode)


def largest_value(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> int:
    """Return the largest value of a 16-bit image, of 65535. Raises UnreadableImageError."""
    with _opened(path, max_pixels) as (_, picture):
        return int(np.asarray(picture.copy()).max())


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return `picture` in 8-bit RGB, whatever its mode: alpha over white, 16 bits scaled, not clipped."""
    if picture.mode in SIXTEEN_BIT_MODES:
        return _from_sixteen_bits(picture).convert("RGB")
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save the image with 8 or 16 bits")
    if picture.has_transparency_data:  # an alpha channel, or a transparent colour of a palette, grey or RGB image
        opaque = picture.convert("RGBA")
        white = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, opaque).convert("RGB")
    return picture.convert("RGB")


@functools.cache
def reads_heif() -> bool:
    """Return whether HEIC and HEIF files can be read: pillow-heif is installed, and Pillow then knows them."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except (ImportError, OSError, AttributeError):
        return False
    return True


@contextmanager
def _opened(path: Source, max_pixels: int) -> Iterator[tuple[IO[bytes], Image.Image]]:
    """Give the open file and its picture, whose pixels are not decoded yet; any failure is UnreadableImageError."""
    try:
        if isinstance(path, EncodedImage):
            check_num_bytes(len(path.content), max_pixels)
        else:
            _check_file(os.stat(path), max_pixels)  # before it is opened: opening a FIFO waits, a device may act
        with _bytes_of(path) as file, _PILLOWS_LIMIT, _open_picture(file) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                limit = f"{max_pixels:,}, the limit (data.max_pixels of an image folder)"
                raise ValueError(f"{width} x {height} pixels are more than {limit}")
            yield file, picture
    except MemoryError:
        raise
    except Exception as error:  # parsers of broken files raise nearly anything: OSError, SyntaxError, struct.error, ...
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(str(path), reason) from error


def _check_file(status: os.stat_result, max_pixels: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in SPECIAL_FILES if is_kind(status.st_mode)), "no regular file")
        raise ValueError(f"{kind}, no image file")
    check_num_bytes(status.st_size, max_pixels)


def check_num_bytes(count: int, max_pixels: int) -> None:
    """Raise ValueError where so many bytes cannot be the file of an image."""
    if count == 0:
        raise ValueError("an empty file")
    if count > MAX_BYTES_PER_PIXEL * max_pixels:
        raise ValueError(f"{count:,} bytes are more than an image of {max_pixels:,} pixels can have")


def _bytes_of(path: Source) -> IO[bytes]:
    return io.BytesIO(path.content) if isinstance(path, EncodedImage) else open(path, "rb")


def _open_picture(file: IO[bytes]) -> Image.Image:
    start = file.read(12)
    file.seek(0)
    try:
        if start.startswith(JPEG_START):
            return _JpegFile(file)
        return Image.open(file, formats=_formats())
    except (UnidentifiedImageError, SyntaxError) as error:
        is_heif = start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS and not reads_heif()
        raise ValueError(HEIF_REMEDY if is_heif else "no image of a known format") from error


class _JpegFile(JpegImageFile):
    """A JPEG whose resolution is not read: Pillow parses all of EXIF for it, and fails where that is broken."""

    def _read_dpi_from_exif(self) -> None:
        pass


@functools.cache
def _formats() -> list[str]:
    Image.init()
    reads_heif()
    return [name for name in FORMATS if name in Image.OPEN]


def _take_tiff_orientation(picture: Image.Image) -> int | None:
    """Return the orientation of a TIFF, whose metadata Pillow then leaves alone; None for other formats.

    Pillow would read them all, and rotate, after the last pixel: whole pixels would be lost to a broken tag.
    """
    tags = getattr(picture, "tag_v2", None)
    if picture.format != "TIFF" or tags is None:
        return None
    picture.load_end = lambda: None  # type: ignore[attr-defined]
    try:
        orientation = tags.get(ORIENTATION, 1)
    except Exception:  # as above
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _from_sixteen_bits(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).astype(np.int64)
    if values.max() > 65535:
        raise ValueError("32-bit pixels have no fixed range; save the image with 8 or 16 bits")
    return Image.fromarray(((values.clip(0) + 128) // 257).astype(np.uint8))  # 65535 = 255 * 257: rounds to the nearest


def _to_tensor(picture: Image.Image) -> Tensor:
    """Return an RGB picture as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _decode_jpeg(encoded: bytes) -> Tensor | None:
    """Return the decoded image, uint8 (3, H, W) as stored, or None where Pillow should try, and name the fault."""
    raw = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    try:
        image: Tensor = decode_jpeg(raw, mode=ImageReadMode.RGB)
    except RuntimeError:
        return None
    return image


class _PillowsLimit:
    """Switches off Pillow's own limit of pixels while ours is in force; may be entered by several threads.

    It warns from half of its limit on, cannot be set for one call, and names no key that a user could change.
    """

    def __init__(self) -> None:
        self._lock, self._entered, self._limit = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            if not self._entered:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._entered += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._entered -= 1
            if not self._entered:
                Image.MAX_IMAGE_PIXELS = self._limit


_PILLOWS_LIMIT = _PillowsLimit()


def read_mask(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return what a file of one 8-bit channel stores, uint8 (H, W): grey values, or places in its palette.

    Raises UnreadableImageError, also for files of several channels or more bits, whose values are no class numbers.
    """
    with _opened(path, max_pixels) as (_, picture):
        if picture.mode not in ("L", "P"):
            raise ValueError(f"a mask must have one 8-bit channel of class numbers, not mode {picture.mode}")
        return torch.from_numpy(np.array(picture, dtype=np.uint8))
