"""The short form of the soak test: runs that faults break end as unbroken ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.exhaustive
def test_faults_change_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/soak.py"), "--faults", "20", "--minutes", "8", "--out"]
    result = subprocess.run(
        [*command, str(tmp_path / "soak")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    page = (tmp_path / "soak" / "soak.md").read_text()
    assert "| **what was wrong** | 0 | 0 |" in page
