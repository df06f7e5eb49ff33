"""What every refusal of the command line has in common."""

from pathlib import Path

import pytest

from perceptual_mae.cli import main


def check_refusal(words: list[str], names: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command in a folder that it must leave as it is; it must exit with 2 and one line with `names` in it."""
    before = contents(folder)
    code = main(words)
    lines = capsys.readouterr().err.splitlines()
    assert code == 2, (code, lines[-3:])
    assert len(lines) == 1, lines
    assert lines[0].startswith("pmae: "), lines
    assert names in lines[0], lines[0]
    assert "Traceback" not in lines[0]
    assert len(lines[0]) < 2000
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the files and folders below a folder with their size and time."""
    paths = sorted(folder.rglob("*"))
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}
