import io
import os
import pickle
import socket
import struct
import sys
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perceptual_mae.data import decoding
from perceptual_mae.data.decoding import HEIF_REMEDY, MAX_PIXELS, UnreadableImageError, read_header, read_image

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

RED, BLUE = (200, 30, 30), (20, 40, 220)


def two_colours() -> Image.Image:
    """Left third red, the rest blue: 48 wide, 32 high."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:] = RED, BLUE
    return Image.fromarray(pixels)


def assert_colour(image: torch.Tensor, row: int, column: int, colour: tuple[int, ...], within: int = 0) -> None:
    assert image.dtype == torch.uint8
    got = image[:, row, column].tolist()
    assert all(abs(a - b) <= within for a, b in zip(got, colour, strict=True)), f"{got} is not {colour}"


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tif", "gif", "ppm", "jpg"])
def test_usual_files_become_rgb_bytes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    two_colours().save(path, quality=95)
    image = read_image(path)
    assert image.shape == (3, 32, 48)
    within = 6 if suffix in ("jpg", "webp") else 0
    assert_colour(image, 10, 4, RED, within)
    assert_colour(image, 10, 40, BLUE, within)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fast", [True, False])
def test_exif_orientation_is_applied(
    tmp_path: Path, suffix: str, orientation: int, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(decoding, "decode_jpeg", None)
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"turned.{suffix}"
    two_colours().save(path, exif=exif, quality=95)
    image = read_image(path)
    # Where the red third of the stored image ends up, by the EXIF standard's words for each orientation.
    red_side = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}[orientation]
    assert image.shape == ((3, 32, 48) if orientation < 5 else (3, 48, 32))
    assert read_header(path).upright_size == image.shape[1:]
    row = {"top": 4, "bottom": image.shape[1] - 5}.get(red_side, 16)
    column = {"left": 4, "right": image.shape[2] - 5}.get(red_side, 16)
    assert_colour(image, row, column, RED, within=6)
    assert_colour(
        image, image.shape[1] - 1 - row, image.shape[2] - 1 - column, BLUE if row != 16 or column != 16 else RED, 6
    )


def test_the_fast_path_reads_jpegs_as_pillow_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((88, 72)).save(tmp_path / "a.jpg", quality=90)
    fast = read_image(tmp_path / "a.jpg").int()
    monkeypatch.setattr(decoding, "decode_jpeg", None)
    assert (fast - read_image(tmp_path / "a.jpg").int()).abs().max() <= 2


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    picture = two_colours()
    alpha = np.full((32, 48), 255, np.uint8)
    alpha[:16], alpha[16:24] = 0, 128
    picture.putalpha(Image.fromarray(alpha))
    picture.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert_colour(image, 4, 4, (255, 255, 255))
    half = tuple(round(c * 128 / 255 + 255 * 127 / 255) for c in RED)
    assert_colour(image, 20, 4, half, within=1)
    assert_colour(image, 30, 4, RED)


def test_grey_with_alpha_is_laid_over_white(tmp_path: Path) -> None:
    Image.merge("LA", (Image.new("L", (4, 2), 60), Image.new("L", (4, 2), 0))).save(tmp_path / "a.png")
    assert_colour(read_image(tmp_path / "a.png"), 0, 0, (255, 255, 255))


def test_palettes_are_converted_and_their_transparent_colour_is_white(tmp_path: Path) -> None:
    palette = two_colours().quantize(4)
    palette.save(tmp_path / "plain.png")
    assert_colour(read_image(tmp_path / "plain.png"), 10, 4, RED)
    red_index = palette.getpixel((4, 10))
    for suffix in ("png", "gif"):
        palette.save(tmp_path / f"clear.{suffix}", transparency=red_index)
        image = read_image(tmp_path / f"clear.{suffix}")
        assert_colour(image, 10, 4, (255, 255, 255))
        assert_colour(image, 10, 40, BLUE)


@pytest.mark.parametrize("fast", [True, False])
def test_cmyk_is_converted(tmp_path: Path, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(decoding, "decode_jpeg", None)
    for suffix in ("jpg", "tif"):
        two_colours().convert("CMYK").save(tmp_path / f"a.{suffix}", quality=95)
        assert_colour(read_image(tmp_path / f"a.{suffix}"), 10, 4, RED, within=6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 257, 32896, 65278, 65535]], np.uint16).repeat(2, axis=0)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert image[0, 0].tolist() == [0, 0, 1, 128, 254, 255]
    assert torch.equal(image[0], image[1])


def test_sixteen_bit_colour_is_scaled(tmp_path: Path) -> None:
    """Written by hand, for Pillow writes no such file: 2 x 1 pixels, RGB, 16 bits."""
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    pixels = struct.pack(">6H", 65535, 32896, 0, 257, 514, 65278)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + pixels)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert_colour(read_image(tmp_path / "a.png"), 0, 0, (255, 128, 0), within=1)
    assert_colour(read_image(tmp_path / "a.png"), 0, 1, (1, 2, 254), within=1)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_and_black_and_white_are_converted(tmp_path: Path, mode: str) -> None:
    Image.new("L", (5, 3), 255).convert(mode).save(tmp_path / "a.png")
    assert_colour(read_image(tmp_path / "a.png"), 2, 4, (255, 255, 255))
    Image.new("L", (5, 3), 90).save(tmp_path / "grey.jpg")
    assert_colour(read_image(tmp_path / "grey.jpg"), 2, 4, (90, 90, 90), within=1)


def test_a_file_is_read_by_its_content_not_its_name(tmp_path: Path) -> None:
    two_colours().save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert_colour(read_image(tmp_path / "a.jpg"), 10, 4, RED)


@pytest.mark.parametrize("case", ["empty", "text", "cut_jpg", "cut_png", "missing", "folder", "float"])
def test_unreadable_files_are_named_with_a_reason_of_one_line(tmp_path: Path, case: str) -> None:
    path = tmp_path / f"{case}.jpg"
    if case == "empty":
        path.write_bytes(b"")
    elif case == "text":
        path.write_text("no image at all")
    elif case.startswith("cut"):
        buffer = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, {"cut_jpg": "JPEG", "cut_png": "PNG"}[case])
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    elif case == "folder":
        path.mkdir()
    elif case == "float":
        Image.fromarray(np.zeros((2, 2), np.float32)).save(path, "TIFF")
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path)
    assert caught.value.path == str(path)
    assert caught.value.reason
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_each_of_the_sixteen_bit_values_becomes_the_nearest_byte(tmp_path: Path) -> None:
    values = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / "a.png")
    nearest = np.rint(values * (255 / 65535)).astype(np.uint8)  # no value lies half-way: 257 is odd
    assert torch.equal(read_image(tmp_path / "a.png")[0], torch.from_numpy(nearest))


def exif_of(*entries: tuple[int, int, int, int], tail: bytes = b"", order: str = "<") -> bytes:
    """An EXIF block with one directory of (tag, type, count, value) and what follows it."""
    start = b"II" if order == "<" else b"MM"
    body = start + struct.pack(order + "HIH", 42, 8, len(entries))
    for tag, kind, count, value in entries:
        inline = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
        body += struct.pack(order + "HHI", tag, kind, count) + inline
    return b"Exif\0\0" + body + bytes(4) + tail


TURNED = (274, 3, 1, 6)
EXIF = {
    "good": (exif_of(TURNED), 6),
    "big-endian": (exif_of(TURNED, order=">"), 6),
    "long orientation": (exif_of((274, 4, 1, 6)), 6),
    "a number below 0 where there are none": (exif_of(TURNED, (0x9204, 5, 1, 38), tail=b"\xff" * 8), 6),
    "division by zero": (exif_of(TURNED, (0x829A, 5, 1, 38), tail=bytes(8)), 6),
    "two resolutions": (exif_of(TURNED, (0x011A, 5, 2, 38), tail=bytes(16)), 6),
    "a pointer beyond the end": (exif_of(TURNED, (0x8769, 4, 1, 2**31)), 6),
    "a float for a rational": (exif_of(TURNED, (0x8825, 9, 9, 38), tail=bytes(40)), 6),
    "doubled prefix": (b"Exif\0\0" + exif_of(TURNED), 6),
    "orientation as text": (exif_of((274, 2, 2, 54)), 1),
    "no such orientation": (exif_of((274, 3, 1, 9)), 1),
    "zero": (exif_of((274, 3, 1, 0)), 1),
    "cut off": (exif_of(TURNED)[:20], 1),
    "no directory": (b"Exif\0\0II*\0\xff\xff\xff\xff", 1),
    "rubbish": (b"Exif\0\0" + bytes(range(40)), 1),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("case", EXIF)
def test_broken_metadata_never_cost_whole_pixels_and_tag_274_alone_turns(
    tmp_path: Path, case: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif, orientation = EXIF[case]
    path = tmp_path / f"a.{suffix}"
    two_colours().save(path, exif=exif, quality=95)
    images = [read_image(path)]
    monkeypatch.setattr(decoding, "decode_jpeg", None)
    images.append(read_image(path))
    for image in images:
        assert image.shape == ((3, 48, 32) if orientation == 6 else (3, 32, 48))
        assert read_header(path).upright_size == image.shape[1:]
        assert_colour(image, 4, 4, RED, within=6)


@pytest.mark.parametrize("broken", [False, True])
def test_a_tiff_is_turned_by_its_tag_whatever_else_is_broken(tmp_path: Path, broken: bool) -> None:
    tags = {274: 6} | ({0x8769: 2**31} if broken else {})
    two_colours().save(tmp_path / "a.tif", tiffinfo=tags)
    image = read_image(tmp_path / "a.tif")
    assert image.shape == (3, 48, 32)
    assert_colour(image, 4, 4, RED)


def small_file_of_a_huge_image(path: Path, side: int = 60_000) -> None:
    """A file of the suffix's format whose header states a square of `side` pixels."""
    suffix, buffer = path.suffix[1:], io.BytesIO()
    if suffix == "gif":
        Image.new("L", (8, 8)).save(buffer, "GIF")
        content = bytearray(buffer.getvalue())
        content[6:10] = struct.pack("<HH", side, side)
    elif suffix == "png":
        Image.new("L", (8, 8)).save(buffer, "PNG")
        content = bytearray(buffer.getvalue())
        content[16:24] = struct.pack(">II", side, side)
        import zlib

        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif suffix == "jpg":
        Image.new("L", (8, 8)).save(buffer, "JPEG")
        content = bytearray(buffer.getvalue())
        start = content.index(b"\xff\xc0")
        content[start + 5 : start + 9] = struct.pack(">HH", side, side)
    elif suffix == "bmp":
        Image.new("L", (8, 8)).save(buffer, "BMP")
        content = bytearray(buffer.getvalue())
        content[18:26] = struct.pack("<ii", side, side)
    elif suffix == "ppm":
        content = bytearray(f"P6 {side} {side} 255\n".encode() + bytes(12))
    else:
        tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (279, 4, 1)]
        entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
        content = bytearray(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(8))
    path.write_bytes(content)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "ppm", "tif"])
def test_a_small_file_of_a_huge_image_is_refused_by_its_header(
    tmp_path: Path, suffix: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(decoding, "decode_jpeg", None)
    path = tmp_path / f"a.{suffix}"
    small_file_of_a_huge_image(path)
    monkeypatch.setattr(Image.core, "new", lambda *_: pytest.fail("memory for pixels"))
    for read in (read_header, read_image):
        with pytest.raises(UnreadableImageError, match=r"60000 x 60000 pixels are more than 178,956,970.*max_pixels"):
            read(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif", "bmp"])
def test_the_limit_of_pixels_can_be_set_and_includes_the_last_pixel(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    two_colours().save(path)
    assert read_image(path, max_pixels=48 * 32).shape == (3, 32, 48)
    with pytest.raises(UnreadableImageError, match=r"48 x 32 pixels are more than 1,535"):
        read_image(path, max_pixels=48 * 32 - 1)


def test_pillows_own_limit_neither_warns_nor_rules_and_is_as_before_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 2 * Image.MAX_IMAGE_PIXELS == MAX_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    two_colours().save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").shape == (3, 32, 48)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(UnreadableImageError):
        read_image(tmp_path / "missing.png")
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.fixture
def special(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "a.png"
    if request.param == "FIFO":
        os.mkfifo(path)
        yield path
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            monkeypatch.chdir(tmp_path)  # a socket's path must be short
            server.bind("a.png")
            yield path
    else:
        path.symlink_to({"device": "/dev/zero", "folder": tmp_path}[request.param])
        yield path


@pytest.mark.parametrize("special", ["FIFO", "socket", "device", "folder"], indirect=True)
def test_what_is_no_regular_file_is_named_and_never_opened(
    special: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("opened"))
    for read in (read_header, read_image):
        with pytest.raises(UnreadableImageError, match=request.node.callspec.params["special"]):
            read(special)


def test_an_endless_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(1 << 40)
    started = time.perf_counter()
    with pytest.raises(UnreadableImageError, match=r"1,099,511,627,776 bytes are more than an image"):
        read_image(tmp_path / "a.png")
    assert time.perf_counter() - started < 1


def test_postscript_is_not_handed_to_another_program(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(UnreadableImageError, match="no image of a known format"):
        read_image(tmp_path / "a.png")


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "reads_heif", lambda: False)
    (tmp_path / "a.jpg").write_bytes(HEIC)
    with pytest.raises(UnreadableImageError, match=HEIF_REMEDY):
        read_image(tmp_path / "a.jpg")


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the library: a red image of 5 x 4 pixels for whatever begins as HEIC does."""
    from PIL import ImageFile

    class Heif(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self._size, self._mode = (5, 4), "RGB"
            self.info["exif"] = exif_of(TURNED)

        def load(self) -> None:
            self.im = Image.new("RGB", self._size, RED).im

    def register() -> None:
        monkeypatch.setitem(Image.OPEN, "HEIF", (Heif, lambda start: start[4:12] == b"ftypheic"))

    library = types.ModuleType("pillow_heif")
    library.register_heif_opener = register
    monkeypatch.setitem(sys.modules, "pillow_heif", library)
    for cached in (decoding.reads_heif, decoding._formats):
        cached.cache_clear()
    try:
        (tmp_path / "a.heic").write_bytes(HEIC)
        image = read_image(tmp_path / "a.heic")
        assert image.shape == (3, 5, 4)
        assert_colour(image, 0, 0, RED)
    finally:
        monkeypatch.undo()
        for cached in (decoding.reads_heif, decoding._formats):
            cached.cache_clear()


def test_thirty_two_bits_are_refused_where_they_exceed_sixteen(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 70_000, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImageError, match="32-bit pixels have no fixed range"):
        read_image(tmp_path / "a.tif")
