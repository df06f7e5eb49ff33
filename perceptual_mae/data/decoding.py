"""Decoding of image files to upright uint8 RGB tensors, without alpha."""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

try:  # The fast path; torchvision announces its removal, and Pillow then reads everything.
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # pragma: no cover
    decode_jpeg = None

JPEG_START = b"\xff\xd8\xff"
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class UnreadableImageError(Exception):
    """A file (`path`) that is no image, is truncated or cannot be opened, with the `reason` in one line."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_image(path: str | Path) -> Tensor:
    """Return the image of a file as uint8 RGB (3, H, W): EXIF rotation applied, alpha laid over white, 16 bits scaled.

    Raises UnreadableImageError.
    """
    try:
        encoded = Path(path).read_bytes()
        if decode_jpeg is not None and encoded.startswith(JPEG_START):
            image = _decode_jpeg(encoded)
            if image is not None:
                return image
        with Image.open(BytesIO(encoded)) as picture:
            return _to_tensor(to_rgb(picture))
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(str(path), "no image of a known format") from error
    except Exception as error:  # parsers of broken files raise nearly anything: OSError, SyntaxError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(str(path), reason) from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return `picture` upright and in 8-bit RGB, whatever its mode: alpha over white, 16 bits scaled, not clipped."""
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in SIXTEEN_BIT_MODES:
        return _from_sixteen_bits(upright).convert("RGB")
    if upright.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save the image with 8 or 16 bits")
    if upright.has_transparency_data:  # an alpha channel, or a transparent colour of a palette, grey or RGB image
        opaque = upright.convert("RGBA")
        white = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, opaque).convert("RGB")
    return upright.convert("RGB")


def _from_sixteen_bits(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 = 255 * 257: rounds to the nearest


def _to_tensor(picture: Image.Image) -> Tensor:
    """Return an RGB picture as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _decode_jpeg(encoded: bytes) -> Tensor | None:
    """Return the decoded image, uint8 (3, H, W), or None where Pillow should try, and name the fault."""
    raw = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    try:
        image: Tensor = decode_jpeg(raw, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError:
        return None
    return image
