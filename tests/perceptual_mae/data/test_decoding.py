import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perceptual_mae.data import decoding
from perceptual_mae.data.decoding import UnreadableImageError, read_image

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
    import struct
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
