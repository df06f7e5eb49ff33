"""Files are complete or not there."""

import errno
import os
from pathlib import Path

import pytest

from perceptual_mae.files import replacing, write_atomically, write_json


def test_a_file_appears_under_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    with replacing(path) as partial:
        partial.write_bytes(b"ne")
        assert path.read_bytes() == b"old"
        partial.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_bytes(b"ne")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1\n}\n'


def test_two_writers_of_a_file_do_not_share_what_is_unfinished(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second, which is longer")
    assert path.read_text() == "first"


def test_a_link_under_the_name_of_an_unfinished_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "precious").write_text("precious")
    monkeypatch.setattr("perceptual_mae.files.secrets.token_hex", lambda _: "known")
    for name in (".summary.json.partial", ".summary.json.known.partial"):
        (tmp_path / name).symlink_to("precious")
    with pytest.raises(FileExistsError, match=r"summary\.json"):
        write_json(tmp_path / "summary.json", {})
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "summary.json").exists()


def test_a_file_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        write_json(tmp_path / "a.json", {})
        with replacing(tmp_path / "b") as partial:  # as safetensors does
            partial.unlink()
            os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in sorted(tmp_path.iterdir())] == [0o664, 0o664]


def test_a_full_disk_names_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    def fail() -> None:
        with replacing(tmp_path / "page.png"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*/page\.png'"):
        fail()
    with pytest.raises(FileNotFoundError, match=r"absent/page\.png'$"):
        write_atomically(tmp_path / "absent" / "page.png", "")
    assert not list(tmp_path.iterdir())
