"""The check of a GPU, rehearsed: every part runs, what is done stays, and a difference is noticed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gpu_check
from gpu import cifar, correctness, profile, speed
from gpu.page import write_page


def compared(ours: torch.Tensor, gradient: torch.Tensor) -> correctness.Comparison:
    reference = {"loss/l1": torch.tensor(2.0), "generator/0": torch.tensor([1.0, 0.0])}
    return correctness.compare("mse", {"loss/l1": ours, "generator/0": gradient}, reference, True)


def test_a_loss_may_differ_by_a_ten_thousandth_and_a_gradient_may_be_longer_but_not_turned():
    assert compared(torch.tensor(2.0001), torch.tensor([3.0, 0.01])).agrees
    assert not compared(torch.tensor(2.001), torch.tensor([1.0, 0.0])).agrees
    assert not compared(torch.tensor(2.0), torch.tensor([1.0, 0.05])).agrees


def test_a_term_that_only_one_side_has_is_an_error():
    with pytest.raises(ValueError, match=r"only in one of the steps: .*'loss/l2'"):
        correctness.compare("mse", {"loss/l1": torch.tensor(1.0)}, {"loss/l2": torch.tensor(1.0)}, True)


WITH_FEW = """
import sys
import gpu_check
from gpu import correctness
correctness.methods = lambda: FEW
sys.exit(gpu_check.main())
"""
"""The script, for the process that computes the reference: it would take a step of every method."""


def test_every_part_runs_on_a_cpu_in_small_and_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["mse", "stylegan2_ada_p"]
    monkeypatch.setattr(correctness, "FOUR", ("mse", "ls_gan_p", "stylegan2_ada_p"))
    monkeypatch.setattr(correctness, "methods", lambda: few)
    (tmp_path / "with_few.py").write_text(WITH_FEW.replace("FEW", repr(few)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    run, script = subprocess.run, str(correctness.SCRIPT)

    def run_with_few(command: list[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        return run([str(tmp_path / "with_few.py") if word == script else word for word in command], **options)

    monkeypatch.setattr(subprocess, "run", run_with_few)
    for part in (speed, profile):
        monkeypatch.setattr(part, "FOUR", tuple(few))
    monkeypatch.setattr(cifar, "RUNS", {name: cifar.RUNS[name] for name in few})
    words = ["--toy", "--out", str(tmp_path / "gpu"), "--seconds", "600"]
    assert gpu_check.main(words) == 0
    page = (tmp_path / "gpu" / "gpu.md").read_text()
    assert page.count("| yes ") == 2 * len(few)
    assert "mse: 0 of" in page
    assert "of the bf16 peak" in page
    assert (tmp_path / "gpu" / "cifar.png").exists()
    runs = json.loads((tmp_path / "gpu" / "cifar.json").read_text())["runs"]
    assert all("problem" not in run[command] for run in runs.values() for command in ("evaluate", "probe", "knn"))
    capsys.readouterr()
    assert gpu_check.main(words) == 0
    assert capsys.readouterr().out.count("done before") == 4


def test_a_method_that_disagrees_makes_the_check_fail(tmp_path: Path) -> None:
    bad = {"method": "mse", "agrees": False, "loss_difference": 1.0, "worst_loss": "mse", "cosines": {"generator": 0.1}}
    results = {"device": "a GPU", "torch": "2", "methods": [{**bad, "bf16_is_finite": True}], "resume": []}
    (tmp_path / "correctness.json").write_text(json.dumps({**results, "gpu_tests": "none"}))
    assert correctness.differences(tmp_path) == ["mse"]
    write_page(tmp_path)
    assert "| mse    | **no** |" in (tmp_path / "gpu.md").read_text()
