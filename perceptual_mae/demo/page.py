"""Images as data URIs, and the page that shows them."""

import base64
import io
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from PIL import Image, features
from torch import Tensor

from perceptual_mae.pages.html_page import html_page

LOSSLESS_SIDE = 64
"""Larger images may be compressed with losses."""
QUALITY = 85
SCRIPTS = ("elements.js", "drawing.js", "brush.js", "demo.js")


def encode(image: Tensor, *, lossy: bool = False) -> str:
    """Return an image, uint8 (3, H, W), as a data URI: PNG, or WebP where `lossy` and the image is large."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    buffer = io.BytesIO()
    is_webp = lossy and max(image.shape[1:]) > LOSSLESS_SIDE and features.check("webp")
    if is_webp:
        picture.save(buffer, "WEBP", quality=QUALITY)
    else:
        picture.save(buffer, "PNG", optimize=lossy, compress_level=1)
    return f"data:image/{'webp' if is_webp else 'png'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def page(content: Mapping[str, Any]) -> str:
    """Return the HTML of the demo. With `live` in its content it asks its own server, otherwise it asks for nothing."""
    return html_page(
        "perceptual-mae demo",
        '<main id="demo"></main>',
        files("perceptual_mae.demo") / "assets",
        scripts=SCRIPTS,
        styles=("page.css",),
        content=content,
        live=bool(content["live"]),
    )
