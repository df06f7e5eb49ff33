"""A folder is packed whole or not at all, the same files to the same bytes, and nobody's files are replaced."""

import hashlib
import shutil
import tarfile
from pathlib import Path
from unittest import mock

import pytest
from test_shards import png

from perceptual_mae.data import shard_writing
from perceptual_mae.data.image_folder import ImageFolder
from perceptual_mae.data.shard_writing import write_shards
from perceptual_mae.data.shards import Shards
from perceptual_mae.errors import UserError
from photographs import photos


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file but the indices, which hold times."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".index"]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_the_same_files_make_the_same_shards(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", each=6)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for number, path in enumerate(sorted(copy.rglob("*.png"))):
        path.chmod(0o600)
        path.touch()
        path.rename(path.with_name(f"{number:03}.tmp"))
    for path in sorted(copy.rglob("*.tmp"), reverse=True):  # written in another order
        path.rename(path.with_name(f"{int(path.stem) % 6:02}.png"))
    write_shards(folder, tmp_path / "one", megabytes=0.03)
    write_shards(copy, tmp_path / "two", megabytes=0.03)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert len(digests(tmp_path / "one")) == 4


def test_shards_hold_the_bytes_of_the_files_and_the_numbers_of_classes(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", each=3)
    write_shards(folder, tmp_path / "out", megabytes=1)
    with tarfile.open(tmp_path / "out/shard-000000.tar") as tar:
        contents = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert list(contents)[:4] == ["a/00.png", "a/00.cls", "a/01.png", "a/01.cls"]
    assert contents["b/02.cls"] == b"1"
    assert contents["b/02.png"] == (folder / "b/02.png").read_bytes()
    assert (tmp_path / "out/classes.txt").read_text() == "a\nb\n"


def test_no_shard_is_larger_than_asked_unless_an_image_is(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", each=6)
    write_shards(folder, tmp_path / "out", megabytes=0.03)
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.tar")]
    assert max(sizes) <= 30_000 + 10_240  # tars are padded to records
    assert write_shards(folder, tmp_path / "single", megabytes=0.001)[""] == (12, 12)


def test_names_with_several_dots_or_one_stem_get_keys_of_their_own(tmp_path: Path) -> None:
    for name in ("x.v1.png", "x.v2.png", "y.png", "y.PNG", "x_v1.png"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(png(len(name)))
    write_shards(tmp_path / "photos", tmp_path / "out")
    packed = Shards("train", root=str(tmp_path / "out"), holdout=0)
    files = ImageFolder("train", root=str(tmp_path / "photos"), holdout=0)
    names = [packed.file_name(index).partition("/")[2] for index in range(5)]
    assert sorted(names) == ["x_v1.png", "x_v1_2.png", "x_v2.png", "y.png", "y_2.png"]
    assert [packed.file_size(index) for index in range(5)] == [
        files.file_path(index).stat().st_size for index in range(5)
    ]


def test_split_folders_become_folders_of_shards(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        photos(tmp_path / "photos" / split, each=2)
    counts = write_shards(tmp_path / "photos", tmp_path / "out")
    assert counts == {"train": (4, 1), "val": (4, 1), "test": (4, 1)}
    for split in ("train", "val", "test"):
        packed = Shards(split, root=str(tmp_path / "out"))
        files = ImageFolder(split, root=str(tmp_path / "photos"))
        assert [packed.label(index) for index in range(4)] == [files.label(index) for index in range(4)] == [0, 0, 1, 1]
        assert packed.classes == ("a", "b")


def test_what_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", each=2)
    write_shards(folder, tmp_path / "out", megabytes=0.01)
    before = digests(tmp_path / "out")
    with pytest.raises(UserError, match="holds shards already; replace them with --overwrite"):
        write_shards(folder, tmp_path / "out")
    assert digests(tmp_path / "out") == before
    write_shards(folder, tmp_path / "out", overwrite=True)
    assert sorted(digests(tmp_path / "out")) == ["classes.txt", "shard-000000.tar"]
    (tmp_path / "out/thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds other files, such as thesis\.tex"):
        write_shards(folder, tmp_path / "out", overwrite=True)
    with pytest.raises(UserError, match="holds the images; name another folder"):
        write_shards(folder, folder.parent)


def test_a_conversion_that_fails_leaves_nothing_and_the_old_shards(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", each=2)
    write_shards(folder, tmp_path / "out")
    before = digests(tmp_path)
    with mock.patch.object(shard_writing, "index_of", side_effect=OSError(28, "No space left on device")):
        for out, overwrite in ((tmp_path / "new", False), (tmp_path / "out", True)):
            with pytest.raises(OSError, match="No space"):
                write_shards(folder, out, overwrite=overwrite)
    assert digests(tmp_path) == before
    (folder / "a/9.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"a/9\.png: no file that can be packed"):
        write_shards(folder, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]
