"""Processes of a launcher join, without a variable being set, and precision follows the device."""

from pathlib import Path

import pytest
import torch

from conftest import DEBUG, debug_config
from perceptual_mae.evaluation import open_run
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.run.run import Run
from perceptual_mae.training import messages
from perceptual_mae.training.loop import pretrain
from processes import launch_two_processes, run_two_processes


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="with a GPU processes take one each")
def test_a_launchers_processes_train_one_run_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    command = ("-m", "perceptual_mae.cli", "pretrain", DEBUG, "mse", "training.epochs=1", "--out", tmp_path / "run")
    finished = launch_two_processes(*command)
    assert "(2 processes x 1 micro-batch x 4 images)" in finished.stdout + finished.stderr
    assert Run(tmp_path / "run").step == 4


ENDING = """
import sys
from pathlib import Path
from perceptual_mae.cli import main
assert main(sys.argv[1:]) == 0
print("threads:", sorted(file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads that are not Python's are only listed there")
def test_no_thread_of_the_process_group_is_left_to_the_interpreters_end(tmp_path: Path) -> None:
    script = tmp_path / "end.py"
    script.write_text(ENDING)
    finished = run_two_processes(script, "pretrain", DEBUG, "mse", "training.epochs=1", "--out", tmp_path / "run")
    assert finished.stdout.count("threads:") == 2
    assert "gloo" not in finished.stdout


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "no")])
def test_precision_auto_is_bf16_where_the_device_has_it(
    native: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_run, "computes_in_bf16", lambda: native)
    accelerator = make_accelerator(debug_config("mse", "training.precision=auto"), training=True)
    assert accelerator.mixed_precision == precision


def test_emulated_bf16_is_warned_of_and_the_precision_is_kept_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(messages, "computes_in_bf16", lambda: False)
    pretrain(debug_config("mse", "training.precision=bf16", "training.epochs=1"), tmp_path / "run", quiet=True)
    assert "emulates bf16" in (tmp_path / "run" / "log.txt").read_text()
    assert '"precision": "bf16"' in (tmp_path / "run" / "environment.json").read_text()
