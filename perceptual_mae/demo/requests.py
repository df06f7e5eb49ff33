"""What the page asks for: photographs taken in, masks drawn, images filled in."""

import json
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

from torch import Tensor

from perceptual_mae.data.decoding import UnreadableImageError
from perceptual_mae.demo import masks
from perceptual_mae.demo.methods import Method
from perceptual_mae.demo.page import encode
from perceptual_mae.demo.photographs import Album, Photograph
from perceptual_mae.pages.local_server import Refusal, Route

LARGEST_FILE = 2**25
"""Bytes of a photograph: 32 MiB."""
LARGEST_REQUEST = 2**20
"""Bytes of any other request: more than any mask needs."""

Value = TypeVar("Value")


class Demo:
    """Methods and an album, and the answers to requests about them. It may be called by several threads."""

    def __init__(self, methods: Sequence[Method], album: Album) -> None:
        self.methods, self.album = methods, album

    @property
    def grid(self) -> tuple[int, int]:
        """The grid on which one paints: the first method's."""
        return self.methods[0].grid

    def routes(self, page: str) -> dict[tuple[str, str], Route]:
        """Return the addresses of the demo; `page` is at the first."""
        return {
            ("GET", "/"): Route(lambda _: page, "text/html; charset=utf-8"),
            ("POST", "/image"): Route(self.take_image, largest=LARGEST_FILE),
            ("POST", "/mask"): Route(_of_object(self.draw_mask), largest=LARGEST_REQUEST),
            ("POST", "/answer"): Route(_of_object(self.answer), largest=LARGEST_REQUEST),
        }

    def take_image(self, encoded: bytes) -> str:
        """Take in a photograph; return its views, and what was done to it."""
        try:
            photograph = self.album.add(encoded)
        except UnreadableImageError as failure:
            raise Refusal(
                HTTPStatus.UNPROCESSABLE_ENTITY, f"this file cannot be read: {failure.reason}; choose another"
            ) from failure
        return json.dumps(self.describe(photograph))

    def describe(self, photograph: Photograph, *, lossy: bool = False) -> dict[str, Any]:
        """Return a photograph as the page has it."""
        views = [encode(view, lossy=lossy) for view in photograph.views]
        return {"key": photograph.key, "label": photograph.label, "views": views, "note": photograph.note}

    def draw_mask(self, wanted: Mapping[str, Any]) -> str:
        """Return a mask of a kind, a ratio and a seed."""
        kind, ratio, seed = wanted.get("kind"), wanted.get("ratio"), wanted.get("seed")
        if kind not in masks.KINDS:
            raise _bad(f"kind is one of {', '.join(masks.KINDS)}")
        if not isinstance(ratio, int | float) or not 0 <= ratio < 1:
            raise _bad("ratio is a number in [0, 1)")
        if not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise _bad("seed is a whole number from 0 on")
        mask = _said(lambda: masks.draw(kind, self.grid, float(ratio), seed))
        return json.dumps({"mask": masks.to_text(mask)})

    def answer(self, wanted: Mapping[str, Any]) -> str:
        """Return what methods make of an image under a mask: one forward each."""
        key, text, numbers = wanted.get("image"), wanted.get("mask"), wanted.get("methods")
        if not isinstance(key, str) or (photograph := self.album.get(key)) is None:
            raise Refusal(HTTPStatus.GONE, "this photograph is not kept any more; choose it again")
        if not isinstance(text, str):
            raise _bad("mask is a text of 1 and 0")
        mask = _said(lambda: masks.read_mask(text, self.grid))
        if bool(mask.all()):
            raise _bad("everything is hidden; leave at least one patch visible")
        known = range(len(self.methods))
        if not isinstance(numbers, list) or not all(type(each) is int and each in known for each in numbers):
            raise _bad(f"methods are numbers from 0 to {known[-1]}")
        return json.dumps({"answers": [self.fill(number, photograph, mask) for number in dict.fromkeys(numbers)]})

    def fill(self, number: int, photograph: Photograph, mask: Tensor, *, lossy: bool = False) -> dict[str, Any]:
        """Return what one method makes of a photograph under a mask (L,) of the first method's grid."""
        method = self.methods[number]
        filling = method.fill(photograph.views[self.album.view_of[number]], mask, self.grid)
        return {
            "method": number,
            "output": encode(filling.output, lossy=lossy),
            "psnr": filling.psnr,
            "mask": masks.to_text(filling.mask),
        }


def _of_object(answer: Callable[[Mapping[str, Any]], str]) -> Callable[[bytes], str]:
    """Return a function of a body that must hold a JSON object."""

    def read_and_answer(body: bytes) -> str:
        try:
            wanted = json.loads(body)
        except (ValueError, RecursionError):
            wanted = None
        if not isinstance(wanted, dict):
            raise _bad("the request is no JSON object")
        return answer(wanted)

    return read_and_answer


def _said(make: Callable[[], Value]) -> Value:
    """Return what is made; its ValueError is said to the visitor."""
    try:
        return make()
    except ValueError as mistake:
        raise _bad(str(mistake)) from mistake


def _bad(sentence: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, sentence)
