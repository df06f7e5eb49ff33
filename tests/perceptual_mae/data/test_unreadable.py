import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perceptual_mae.data import decoding, image_tree, unreadable
from perceptual_mae.data.image_folder import ImageFolder
from perceptual_mae.data.shapes import Shapes
from perceptual_mae.data.subsets import Selection
from perceptual_mae.data.unreadable import DARK_BELOW, check_images, read_list, write_list


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(unreadable, "user_cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def photos(root: Path, count: int, bad: int = 0) -> Path:
    """A flat folder of images, the first `bad` of which are none."""
    root.mkdir()
    for number in range(count):
        path = root / f"{number:03}.png"
        if number < bad:
            path.write_text("no image")
        else:
            Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    return root


def whole(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder("train", root=str(root), holdout=0, **options)


def test_all_headers_are_checked_and_all_bad_files_listed(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 20, bad=5)
    os.mkfifo(root / "pipe.png")
    calls = []
    check = check_images({"train": whole(root)}, lambda *call: calls.append(call), may_remove=True)
    reasons = {str(root / f"{number:03}.png"): "no image of a known format" for number in range(5)}
    reasons |= {str(root / "pipe.png"): "a FIFO, no image file"}
    assert check.unreadable == {"train": reasons}
    assert check.lines[0].startswith(f"train: 21 image files, 6 of which cannot be read: {root / '000.png'}: no image")
    assert check.lines[0].endswith("; ...")
    assert check.refusal is not None
    assert (
        "6 of 21 images cannot be read, more than 1%; fix or remove them, or raise data.max_unreadable" in check.refusal
    )
    assert calls == [("train, headers", 21, 21)]
    learnt_from = check_images({"train": whole(root)}).refusal
    assert learnt_from == check.refusal.replace("fix or remove them", "fix them")
    listed = tmp_path / "unreadable.txt"
    write_list(listed, check.all_unreadable)
    assert listed.read_text().splitlines() == [f"{path}: {reason}" for path, reason in reasons.items()]
    assert read_list(listed) == list(reasons)
    write_list(listed, {})
    assert not listed.exists()
    assert read_list(listed) == []


@pytest.mark.parametrize(("share", "is_refused"), [(0.0, True), (0.19, True), (0.2, False), (0.9, False)])
def test_the_share_of_unreadable_files_is_a_key(tmp_path: Path, share: float, is_refused: bool) -> None:
    root = photos(tmp_path / "photos", 10, bad=2)
    assert (check_images({"train": whole(root, max_unreadable=share)}).refusal is not None) == is_refused


def test_a_suspect_is_read_whole_though_its_header_is_sound(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 3)
    cut = root / "001.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(cut)
    cut.write_bytes(cut.read_bytes()[:1500])
    suspects = [str(cut), str(root / "000.png"), "elsewhere.png"]
    assert check_images({"train": whole(root)}).unreadable == {"train": {}}
    for _ in range(2):  # from the headers, and from the cache
        assert list(check_images({"train": whole(root)}, suspects=suspects).unreadable["train"]) == [str(cut)]


def test_one_bad_file_of_a_held_out_split_is_let_pass(tmp_path: Path) -> None:
    assert check_images({"test": whole(photos(tmp_path / "one", 6, bad=1))}).refusal is None
    assert check_images({"test": whole(photos(tmp_path / "two", 6, bad=2))}).refusal is not None


def test_a_file_whose_size_and_time_are_the_same_is_not_opened_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photos(tmp_path / "photos", 6, bad=1)
    first, opened, read = check_images({"train": whole(root)}), list[str](), decoding.read_header

    def read_header(path: Path, **options: Any) -> decoding.Header:
        opened.append(path.name)
        return read(path, **options)

    monkeypatch.setattr(unreadable, "read_header", read_header)
    assert check_images({"train": whole(root)}) == first
    assert opened == ["000.png"]  # what was bad is read again
    (root / "003.png").write_text("spoilt since")
    os.utime(root / "004.png", ns=(1, 1))
    opened.clear()
    check = check_images({"train": whole(root)})
    assert sorted(opened) == ["000.png", "003.png", "004.png"]
    assert len(check.unreadable["train"]) == 2
    opened.clear()
    check_images({"train": whole(root, max_pixels=15)})
    assert len(opened) == 6  # another limit is another question
    for file in (cache / "perceptual-mae" / "headers").iterdir():
        assert isinstance(json.loads(file.read_text()), dict)
        file.write_text("{")
    assert len(check_images({"train": whole(root)}).unreadable["train"]) == 2


@pytest.mark.parametrize("content", ["[]", '{"000.png": 3}', '{"000.png": [1]}', "\0"])
def test_a_damaged_cache_changes_nothing(tmp_path: Path, cache: Path, content: str) -> None:
    root = photos(tmp_path / "photos", 2)
    first = check_images({"train": whole(root)})
    for file in (cache / "perceptual-mae" / "headers").iterdir():
        file.write_text(content)
    assert check_images({"train": whole(root)}) == first


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert check_images({"train": whole(photos(tmp_path / "photos", 2))}).refusal is None


def test_links_are_counted_and_loops_end(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 2)
    (root / "linked.png").symlink_to(root / "000.png")
    (root / "sub").mkdir()
    (root / "sub" / "up").symlink_to(root)
    check = check_images({"train": whole(root), "test": whole(root)})
    assert check.lines == [
        "train: 3 image files",
        f"{root}: 2 link(s) followed",
        f"{root}: 1 folder(s) left out, for links lead to them again: sub/up/",
        "test: 3 image files",
    ]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("largest", "warns"), [(4095, True), (DARK_BELOW - 1, True), (DARK_BELOW, False)])
def test_twelve_bits_in_sixteen_keep_the_fixed_scale_with_one_warning(
    tmp_path: Path, suffix: str, largest: int, warns: bool
) -> None:
    (tmp_path / "scans").mkdir()
    for number in range(3):
        values = np.array([[0, largest]], np.uint16)
        Image.fromarray(values).save(tmp_path / "scans" / f"{number}.{suffix}")
    dataset = whole(tmp_path / "scans")
    assert dataset[0][0][0].tolist() == [[0, round(largest / 257)]]
    for _ in range(2):  # from the headers, and from the cache
        check = check_images({"train": dataset})
        assert len(check.warnings) == warns
        if warns:
            assert f"under an eighth of their range (largest value {largest} of 65535 in 3)" in check.warnings[0]


def test_heic_files_are_counted_and_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tree, "reads_heif", lambda: False)
    root = photos(tmp_path / "photos", 2)
    (root / "IMG_1.HEIC").write_bytes(b"")
    (root / "IMG_2.heif").write_bytes(b"")
    check = check_images({"train": whole(root)})
    assert check.warnings == [
        f"{root}: 2 HEIC file(s) left out, such as IMG_1.HEIC, IMG_2.heif; {decoding.HEIF_REMEDY}"
    ]
    monkeypatch.setattr(image_tree, "reads_heif", lambda: True)
    assert len(whole(root)) == 4


def test_sets_without_files_have_nothing_to_check_and_subsets_check_their_own(tmp_path: Path) -> None:
    assert check_images({"train": Shapes("train", size=8, num_images=4)}).lines == []
    chosen = Selection(whole(photos(tmp_path / "photos", 6, bad=3), max_unreadable=0.5), [1, 4])
    check = check_images({"train": chosen})
    assert len(check.unreadable["train"]) == 1
    assert check.refusal is None
