"""The demo's server: what is filled in, what is refused and how, and who is answered."""

import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perceptual_mae.demo.requests import LARGEST_FILE
from perceptual_mae.pages.local_server import HOST
from running_demo import Visitor, make_runs, png, serving

MASK = "1100110000000001"


@pytest.fixture(scope="module")
def visitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    with serving(make_runs(tmp_path_factory.mktemp("runs"))) as visitor:
        yield visitor


def pixels_of(uri: str) -> np.ndarray:
    """The pixels of a data URI, float64 (H, W, 3) in [0, 255]."""
    kind, encoded = uri.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")).astype(np.float64)


def spread(mask: str, patches: int, side: int) -> np.ndarray:
    """A mask over pixels, bool (side, side)."""
    marks = np.array([mark == "1" for mark in mask]).reshape(patches, patches)
    return np.kron(marks, np.ones((side // patches,) * 2)).astype(bool)


@pytest.mark.parametrize("method", [0, 1])
def test_the_psnr_is_that_of_the_hidden_pixels_of_the_output_that_is_shown(visitor: Visitor, method: int) -> None:
    image = visitor.demo.describe(visitor.demo.album.offered[0])
    (answer,) = visitor.fill("offered-0", MASK, method)
    hidden = spread(answer["mask"], 4 * (1 + method), 32)
    difference = (pixels_of(answer["output"]) - pixels_of(image["views"][0]))[hidden] / 255
    assert answer["psnr"] == pytest.approx(-10 * np.log10((difference**2).mean()), abs=0.02)  # pixels are rounded
    assert hidden.sum() == spread(MASK, 4, 32).sum()


def test_the_output_is_the_generators(visitor: Visitor) -> None:
    method = visitor.demo.methods[0]
    with torch.no_grad():
        image = visitor.demo.album.offered[1].views[0][None] / 255
        expected = method.generator(image, torch.tensor([[mark == "1" for mark in MASK]])).pyramid[0][0]
    (answer,) = visitor.fill("offered-1", MASK, 0)
    shown = pixels_of(answer["output"]).transpose(2, 0, 1)
    assert np.abs(shown - 255 * expected.clamp(0, 1).numpy()).max() <= 0.501


def test_an_answer_takes_one_forward_of_each_method_asked_and_less_than_a_second(visitor: Visitor) -> None:
    calls = [0, 0]

    def count(number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[number] += 1

        return hook

    handles = [
        method.generator.register_forward_hook(count(number)) for number, method in enumerate(visitor.demo.methods)
    ]
    start = time.monotonic()
    visitor.fill("offered-0", MASK, 1)
    assert time.monotonic() - start < 1
    assert calls == [0, 1]
    visitor.fill("offered-0", MASK, 0, 1)
    assert calls == [1, 2]
    for handle in handles:
        handle.remove()


def test_a_method_of_other_patches_gets_the_nearest_mask_of_its_own(visitor: Visitor) -> None:
    coarse, fine = visitor.fill("offered-0", MASK, 0, 1)
    assert coarse["mask"] == MASK
    assert (spread(fine["mask"], 8, 32) == spread(MASK, 4, 32)).all()


def test_where_nothing_is_hidden_there_is_no_psnr(visitor: Visitor) -> None:
    (answer,) = visitor.fill("offered-0", 16 * "0", 0)
    assert answer["psnr"] is None


def test_a_photograph_of_ones_own_is_filled_in(visitor: Visitor) -> None:
    status, image = visitor.post("/image", png())
    assert status == 200
    assert image["note"] == "48 x 40 pixels, scaled and cropped in the middle to 32 x 32"
    assert pixels_of(image["views"][0]).shape == (32, 32, 3)
    assert len(visitor.fill(image["key"], MASK, 0, 1)) == 2


@pytest.mark.parametrize("kind", ["random", "block", "grid"])
def test_masks_are_drawn_at_a_ratio(visitor: Visitor, kind: str) -> None:
    status, answer = visitor.post("/mask", {"kind": kind, "ratio": 0.5, "seed": 1})
    assert status == 200
    assert answer["mask"].count("1") == 8


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A small PNG whose header promises 50,000 x 50,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT" + zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


GREY = Image.new("RGB", (48, 40), (90, 90, 90))
TURNED = Image.Exif()
TURNED[274] = 6
REFUSED = {
    "truncated": (png()[:3000], "truncated"),
    "bomb": (bomb(), "50000 x 50000 pixels are more than 67,108,864, the limit"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "no image of a known format"),
    "html": (b"<!doctype html><script>alert(1)</script>", "no image of a known format"),
    "empty": (b"", "an empty file"),
    "wrong type": (b"PK\x03\x04" + 100 * b"\0", "no image of a known format"),
    "floats": (saved(Image.new("F", (8, 8)), "TIFF"), "floating-point pixels have no fixed range"),
}
RED = Image.new("RGB", (48, 40), "red")
TAKEN = {
    "20,000 x 1": (saved(Image.new("RGB", (20_000, 1), (90, 90, 90)), "PNG"), "20000 x 1 pixels"),
    "CMYK": (saved(GREY.convert("CMYK"), "JPEG", quality=95), "48 x 40 pixels"),
    "turned": (saved(GREY, "JPEG", exif=TURNED, quality=95), "40 x 48 pixels"),
    "animated": (
        saved(GREY, "GIF", save_all=True, append_images=[RED]),
        "48 x 40 pixels",
    ),
    "16-bit": (saved(Image.new("I;16", (48, 40), 90 * 257), "PNG"), "48 x 40 pixels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_picture_is_refused_in_a_sentence(visitor: Visitor, name: str) -> None:
    encoded, reason = REFUSED[name]
    status, answer = visitor.post("/image", encoded)
    assert status == 422
    assert answer["error"].startswith("this file cannot be read: ")
    assert reason in answer["error"]
    assert answer["error"].endswith("; choose another")
    assert visitor.ask("/")[0].status == 200


@pytest.mark.parametrize("name", TAKEN)
def test_an_odd_picture_is_read_as_a_person_would_see_it(visitor: Visitor, name: str) -> None:
    encoded, note = TAKEN[name]
    status, image = visitor.post("/image", encoded)
    assert status == 200, image
    assert image["note"].startswith(note)
    assert np.abs(pixels_of(image["views"][0]) - 90).max() <= 2
    visitor.fill(image["key"], MASK, 0)


def test_a_turned_photograph_stands_upright(visitor: Visitor) -> None:
    picture = Image.new("RGB", (32, 32), "black")
    picture.paste((255, 255, 255), (0, 0, 16, 32))  # the left half; turned by 90 degrees it is the upper half
    _, image = visitor.post("/image", saved(picture, "PNG", exif=TURNED))
    view = pixels_of(image["views"][0])
    assert (view[:16].mean(), view[16:].mean()) == (255, 0)


def test_a_body_of_200_mb_is_refused_in_a_sentence_although_the_client_sends_it_whole(visitor: Visitor) -> None:
    part = bytes(2**20)
    length = {"Content-Length": str(200 * len(part))}
    answer, content = visitor.ask("/image", (part for _ in range(200)), headers=length)
    assert answer.status == 413
    assert json.loads(content)["error"] == f"209,715,200 bytes are more than {LARGEST_FILE:,}, the limit"
    assert visitor.ask("/")[0].status == 200


def test_a_body_that_breaks_off_is_refused(visitor: Visitor) -> None:
    with socket.create_connection((HOST, visitor.port), timeout=20) as client:
        client.sendall(b"POST /image HTTP/1.0\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nshort")
        client.shutdown(socket.SHUT_WR)
        answer = client.makefile("rb").read()
    assert b" 400 " in answer.splitlines()[0]
    assert b"broke off after 5 of 100 bytes" in answer


def test_a_body_of_unknown_length_is_refused(visitor: Visitor) -> None:
    answer, content = visitor.ask("/image", iter([b"x"]))  # chunked
    assert answer.status == 411
    assert b"does not say how long" in content


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/answer", b"{", 400, "no JSON object"),
        ("/answer", b"[]", 400, "no JSON object"),
        ("/answer", b"[" * 100_000, 400, "no JSON object"),
        ("/answer", {}, 410, "choose it again"),
        ("/answer", {"image": "../../etc/passwd", "mask": MASK, "methods": [0]}, 410, "choose it again"),
        ("/answer", {"image": "offered-0", "mask": MASK[1:], "methods": [0]}, 400, "a mask is 16 characters"),
        ("/answer", {"image": "offered-0", "mask": [1], "methods": [0]}, 400, "mask is a text"),
        ("/answer", {"image": "offered-0", "mask": 16 * "1", "methods": [0]}, 400, "leave at least one patch visible"),
        ("/answer", {"image": "offered-0", "mask": MASK, "methods": [2]}, 400, "numbers from 0 to 1"),
        ("/answer", {"image": "offered-0", "mask": MASK, "methods": [-1]}, 400, "numbers from 0 to 1"),
        ("/answer", {"image": "offered-0", "mask": MASK, "methods": [[]]}, 400, "numbers from 0 to 1"),
        ("/mask", {"kind": "attention", "ratio": 0.5, "seed": 0}, 400, "random, block, grid"),
        ("/mask", {"kind": [], "ratio": 0.5, "seed": 0}, 400, "random, block, grid"),
        ("/mask", {"kind": "grid", "ratio": 0.99, "seed": 0}, 400, "use at most 0.9375"),
        ("/mask", {"kind": "grid", "ratio": "0.5", "seed": 0}, 400, "ratio is a number"),
        ("/mask", b'{"kind": "grid", "ratio": NaN, "seed": 0}', 400, "ratio is a number"),
        ("/mask", {"kind": "grid", "ratio": 10**400, "seed": 0}, 400, "ratio is a number"),
        ("/mask", {"kind": "grid", "ratio": 0.5, "seed": -1}, 400, "seed is a whole number"),
        ("/mask", {"kind": "grid", "ratio": 0.5, "seed": 2**63}, 400, "seed is a whole number"),
        ("/mask", bytes(2**20 + 1), 413, "more than 1,048,576"),
        ("/", b"", 404, "nothing at this address"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_request_that_makes_no_sense_is_refused_in_a_sentence(
    visitor: Visitor, path: str, body: Any, status: int, sentence: str
) -> None:
    got, answer = visitor.post(path, body)
    assert got == status
    assert sentence in answer["error"]
    assert visitor.ask("/")[0].status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/%2e%2e/config.yaml",
        "/etc/passwd",
        "/config.yaml",
        "/assets/page.css",
        "/image/..",
        "/?",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_path_of_the_disk_is_known(visitor: Visitor, path: str, method: str) -> None:
    answer, content = visitor.ask(path, b"{}" if method == "POST" else None, method=method)
    assert answer.status == 404
    assert json.loads(content) == {"error": "there is nothing at this address"}


def test_another_method_is_refused(visitor: Visitor) -> None:
    answer, content = visitor.ask("/", method="DELETE")
    assert answer.status == 501
    assert "error" in json.loads(content)


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example:80"}, {"Host": ""}])
def test_another_name_of_the_machine_is_refused(visitor: Visitor, headers: dict[str, str]) -> None:
    answer, content = visitor.ask("/", headers=headers)
    assert answer.status == 403
    assert json.loads(content)["error"] == "this server answers to 127.0.0.1 and localhost alone"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "https://127.0.0.1"])
def test_a_script_of_another_page_is_refused(visitor: Visitor, origin: str) -> None:
    body = json.dumps({"kind": "grid", "ratio": 0.5, "seed": 0})
    assert visitor.ask("/mask", body, headers={"Origin": origin})[0].status == 403
    own = {"Origin": f"http://{HOST}:{visitor.port}"}
    answer, _ = visitor.ask("/mask", body, headers=own)
    assert answer.status == 200
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_a_visitor_who_is_slow_does_not_keep_others_waiting_and_two_get_their_own_answers(visitor: Visitor) -> None:
    with socket.create_connection((HOST, visitor.port), timeout=20) as slow:
        slow.sendall(b"POST /image HTTP/1.0\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        masks = [MASK, MASK[::-1]]
        expected = [visitor.fill("offered-0", mask, 0)[0]["output"] for mask in masks]
        got: dict[int, set[str]] = {0: set(), 1: set()}

        def ask(number: int) -> None:
            for _ in range(5):
                got[number].add(visitor.fill("offered-0", masks[number], 0)[0]["output"])

        threads = [threading.Thread(target=ask, args=(number,)) for number in got]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == {0: {expected[0]}, 1: {expected[1]}}
    assert expected[0] != expected[1]


def test_the_page_is_for_this_machine_and_names_of_runs_are_no_markup(visitor: Visitor) -> None:
    answer, content = visitor.ask("/")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert b"connect-src 'self'" in content
    assert b"fine \\u003cb\\u003e" in content
    assert b"fine <b>" not in content
    assert content.isascii()


def test_visitors_photographs_make_room_and_offered_ones_stay(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perceptual_mae.demo.photographs.MOST_KEPT", 2)
    keys = [visitor.post("/image", png((40, 40 + number)))[1]["key"] for number in range(2)]
    visitor.fill(keys[0], MASK, 0)  # it is the one used last now
    visitor.post("/image", png((40, 50)))
    visitor.fill(keys[0], MASK, 0)
    assert visitor.post("/answer", {"image": keys[1], "mask": MASK, "methods": [0]})[0] == 410
    visitor.fill("offered-0", MASK, 0)


def test_the_server_listens_at_one_address_alone(visitor: Visitor) -> None:
    with pytest.raises(OSError):  # noqa: PT011  (refused, or no address of this machine)
        socket.create_connection(("127.0.0.2", visitor.port), timeout=2)
