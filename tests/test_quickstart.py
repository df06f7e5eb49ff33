"""The first command of the README keeps its promises."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_quick_start_trains_within_its_budget_and_beats_the_baselines(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "perceptual_mae.cli", "pretrain", "configs/quickstart.yaml", "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert usage.ru_utime + usage.ru_stime <= 360, "CPU seconds over all cores"
    assert usage.ru_maxrss <= 2_000_000, "kilobytes"
    summary = json.loads((out / "summary.json").read_text())
    for name in ("mean_color", "nearest_patch"):
        assert summary["psnr_masked"] >= summary["baselines"][name]["psnr_masked"] + 2
        assert summary["psnr_masked_pooled"] >= summary["baselines"][name]["psnr_masked_pooled"] + 2
    assert 0 < summary["ssim"] <= 1
