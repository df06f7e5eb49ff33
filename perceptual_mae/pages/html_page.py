"""A page as one HTML file: the template, styles and scripts in one text, and the contents as JSON."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

FOLDER = files("perceptual_mae.pages") / "assets"


def html_page(
    title: str,
    body: str,
    assets: Traversable,
    *,
    scripts: Sequence[str],
    styles: Sequence[str],
    content: Mapping[str, Any],
    live: bool,
    notice: str = "",
) -> str:
    """Return a page that asks for nothing; with `live` it may ask its own server.

    body: the element that the scripts fill. scripts, styles: files of the folder `assets`, in their order, after
    `dom.js`. notice: of what in them is others' work, as a comment of the page.
    """
    script = "\n".join([_read(FOLDER / "dom.js"), *(_read(assets / name) for name in scripts)])
    style = "\n".join(_read(assets / name) for name in styles)
    source = "'self'" if live else "'none'"
    parts = {
        "TITLE": title,
        "POLICY": f"default-src 'none'; img-src data:; script-src {_hash(script)}; style-src {_hash(style)}; "
        f"connect-src {source}; base-uri 'none'; form-action 'none'",
        "NOTICE": f"<!-- {notice}\n-->\n" if notice else "",
        "STYLE": style,
        "BODY": body,
        "CONTENT": to_script(content),
        "SCRIPT": script,
    }
    return re.sub("%%([A-Z]+)%%", lambda mark: parts[mark[1]], _read(FOLDER / "page.html"))


def to_script(content: Any) -> str:
    """Return JSON that may stand in a script element: nothing in it ends the element, and it is strict."""
    text = json.dumps(_strict(content), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _strict(tree: Any) -> Any:
    """Put null where a number is not finite, and plain containers everywhere."""
    if isinstance(tree, Mapping):
        return {str(key): _strict(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_strict(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _read(file: Traversable) -> str:
    return file.read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
