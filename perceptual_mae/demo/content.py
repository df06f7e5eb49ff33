"""What the page holds from the start: methods, images, and for a page to send away the answers, too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from perceptual_mae.config.build import final_ratio
from perceptual_mae.demo import masks
from perceptual_mae.demo.methods import Method, open_methods
from perceptual_mae.demo.page import page
from perceptual_mae.demo.photographs import Album, offer_files, offer_held_out
from perceptual_mae.demo.requests import LARGEST_FILE, Demo
from perceptual_mae.errors import UserError
from perceptual_mae.files import write_atomically

SHARED_RATIOS = (0.5, 0.75)
"""Of the masks on a page to send away: each of the kinds with each of these."""


def open_demo(
    paths: Sequence[Path], images: Sequence[Path], count: int, *, trust_code: bool = False
) -> tuple[Demo, list[str]]:
    """Return a demo of runs, and sentences on what could not be had.

    images: files that are offered. count: of held-out images of the first run's data set, which are offered, too.
    Raises UserError for damaged runs and files.
    """
    methods = open_methods(paths, trust_code=trust_code)
    album = Album(methods)
    offer_files(album, images)
    notes = []
    if count and (why := offer_held_out(album, methods[0].run, count)):
        notes.append(f"no held-out images of {methods[0].name} are offered: {why}")
    return Demo(methods, album), notes


def content_of(demo: Demo, *, live: bool) -> dict[str, Any]:
    """Return the page's content; a page that is not live has answers for all its images and masks."""
    height, width = demo.methods[0].transform.size
    content = {
        "live": live,
        "methods": [_method(demo, number) for number in range(len(demo.methods))],
        "grid": list(demo.grid),
        "size": [height, width],
        "kinds": list(masks.KINDS),
        "ratio": final_ratio(demo.methods[0].run.config.masking),
        "largest_file": LARGEST_FILE,
        "images": [demo.describe(each, lossy=not live) for each in demo.album.offered],
    }
    return content if live else content | _answers(demo)


def write_shared(demo: Demo, folder: Path) -> Path:
    """Write a page with precomputed answers into an empty or new folder; return its path."""
    if not demo.album.offered:
        raise UserError("--share-folder: there is no image to show; name photographs with --image")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    write_atomically(path, page(content_of(demo, live=False)))
    return path


def shared_masks(demo: Demo) -> dict[str, Tensor]:
    """Return the masks of a page to send away by their labels, each once."""
    drawn: dict[str, Tensor] = {}
    for kind in masks.KINDS:
        for ratio in SHARED_RATIOS:
            drawn[f"{kind}, {100 * ratio:g} %"] = masks.draw(kind, demo.grid, ratio, seed=0)
    return drawn


def _answers(demo: Demo) -> dict[str, Any]:
    drawn = shared_masks(demo)
    answers = [
        [
            [demo.fill(number, photograph, mask, lossy=True) for number in range(len(demo.methods))]
            for mask in drawn.values()
        ]
        for photograph in demo.album.offered
    ]
    named = [{"label": label, "mask": masks.to_text(mask)} for label, mask in drawn.items()]
    return {"masks": named, "answers": answers}


def _method(demo: Demo, number: int) -> dict[str, Any]:
    method: Method = demo.methods[number]
    rows, columns = method.grid
    height, width = method.transform.size
    words = f"step {method.run.step}, {'averaged weights, ' if method.run.has_ema else ''}{rows} x {columns} patches"
    notes = []
    if method.preparation != demo.methods[0].preparation:
        notes.append(f"its own images of {width} x {height} pixels")
    if method.generator.norm_pix:
        notes.append("norm_pix: each patch has the mean and deviation of the true one")
    return {
        "name": method.name,
        "words": words,
        "notes": notes,
        "grid": [rows, columns],
        "size": [height, width],
        "view": demo.album.view_of[number],
    }
