"""Images as data URIs, and the page that shows them: its template, styles and scripts in one text of ASCII."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from PIL import Image, features
from torch import Tensor

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
    folder = files("perceptual_mae.demo") / "assets"
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (folder / "page.css").read_text(encoding="utf-8")
    source = "'self'" if content["live"] else "'none'"
    parts = {
        "POLICY": f"default-src 'none'; img-src data:; script-src {_hash(script)}; style-src {_hash(style)}; "
        f"connect-src {source}; base-uri 'none'; form-action 'none'",
        "STYLE": style,
        "CONTENT": to_script(content),
        "SCRIPT": script,
    }
    template = (folder / "page.html").read_text(encoding="utf-8")
    return re.sub("%%([A-Z]+)%%", lambda mark: parts[mark[1]], template)


def to_script(content: Any) -> str:
    """Return JSON that may stand in a script element: nothing in it ends the element, and it is strict."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
