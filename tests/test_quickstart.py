"""The first command of the README keeps its promises."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Linux counts the memory of whoever starts a program as that program's own: so a small process starts this one.
MEASURE = """
import json, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump({"code": code, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_kb": usage.ru_maxrss}, file)
"""


@pytest.mark.slow
@pytest.mark.alone
def test_the_quick_start_trains_within_its_budget_and_beats_the_baselines(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "perceptual_mae.cli", "pretrain", "configs/quickstart.yaml", "--out", str(out)]
    measured = tmp_path / "measured.json"
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # as a user runs it
    subprocess.run([sys.executable, "-c", MEASURE, str(measured), *command], cwd=ROOT, env=env, check=True)
    usage = json.loads(measured.read_text())
    assert usage["code"] == 0
    assert usage["cpu_s"] <= 360, "over all cores"
    assert usage["peak_kb"] <= 2_000_000
    summary = json.loads((out / "summary.json").read_text())
    for name in ("mean_color", "nearest_patch"):
        assert summary["psnr_masked"] >= summary["baselines"][name]["psnr_masked"] + 2
        assert summary["psnr_masked_pooled"] >= summary["baselines"][name]["psnr_masked_pooled"] + 2
    assert 0 < summary["ssim"] <= 1
