"""A run that is interrupted, at any point and in any way, leaves what an unbroken one leaves."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import DistNetworkError

from conftest import DEBUG, debug_config, slow
from perceptual_mae import Run, pretrain
from perceptual_mae.cli import main
from perceptual_mae.data.shapes import Shapes
from perceptual_mae.errors import LostProcessError
from perceptual_mae.run import checkpoint
from perceptual_mae.run.lock import this_process
from perceptual_mae.run.signals import Interrupted, StopSignal
from perceptual_mae.training import loop, peers
from perceptual_mae.training.loop import Pretraining
from perceptual_mae.training.save_points import SavePoint, SavePoints
from perceptual_mae.training.trainer import Trainer
from processes import fork

SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"]
OPTIONS = ("training.log_every=3", "training.keep_last=99")
"""8 steps in 2 epochs, with lines of metrics.jsonl after steps 3, 4, 6 and 8."""


class Killed(BaseException):
    """Ends a run as abruptly as a test can: no code of the run handles it."""


def before_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Act once, when the step of this number (from 1) begins."""
    step = Trainer.step

    def acting(self: Trainer, batches: Any, progress: Any) -> dict[str, torch.Tensor]:
        if progress.step == number - 1:
            act()
        return step(self, batches, progress)

    monkeypatch.setattr(Trainer, "step", acting)


def kill() -> None:
    raise Killed


def left_by(path: Path) -> dict[str, Any]:
    """Everything a run leaves but times: records, pictures, summary, and all tensors of its last checkpoint."""
    tensors = {
        f"{file.stem}/{name}": value.numpy().tobytes()
        for file in sorted(Run(path).checkpoint.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }
    records = [record | {"images_per_second": 0, "data_wait": 0} for record in Run(path).metrics()]
    pictures = {picture.name: picture.read_bytes() for picture in (path / "images").iterdir()}
    return {"tensors": tensors, "records": records, "pictures": pictures, "summary": Run(path).summary()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("unbroken") / "run"
    pretrain(debug_config("mse", *OPTIONS), path, quiet=True)
    return left_by(path)


@pytest.mark.parametrize("name", [pytest.param("SIGINT", marks=pytest.mark.slow), "SIGHUP", "SIGUSR1"])
def test_a_signal_saves_the_step_and_the_same_command_leaves_what_an_unbroken_run_leaves(
    name: str, unbroken: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = debug_config("mse", *OPTIONS)
    with monkeypatch.context() as patch:
        before_step(patch, 5, lambda: os.kill(os.getpid(), signal.Signals[name]))  # amid three steps of one record
        with pytest.raises(Interrupted, match=r"after step 5.*the same command goes on") as stopped:
            pretrain(config, tmp_path / "run", quiet=True)
    assert ("requeued" in str(stopped.value)) == (name == "SIGUSR1")
    assert Run(tmp_path / "run").step == 5
    pretrain(config, tmp_path / "run", quiet=True)
    assert left_by(tmp_path / "run") == unbroken


def test_a_stopped_run_exits_with_130_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert main(["pretrain", DEBUG, "mse", "--out", str(tmp_path / "run")]) == 130
    printed = capsys.readouterr().err
    assert printed.count("stopped and saved after step 1") == 1
    assert "Traceback" not in printed


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_before_anything_is_built_stops_the_run_and_writes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "HeldOut", lambda *_: os.kill(os.getpid(), signal.Signals[name]))
    with pytest.raises(Interrupted, match="before the first step"):
        pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_second_hangup_or_warning_does_not_cut_the_saving_short(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    with StopSignal() as stop:
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert (stop.number, left) == (signal.SIGUSR1, [])
        os.kill(os.getpid(), signal.SIGINT)
        assert left == [130]


def test_a_hangup_that_nohup_ignores_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("method", ["score", slow("draw"), slow("finish")])
@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["before", "after"])
def test_what_a_kill_after_a_checkpoint_cost_is_made_again(
    method: str, after: bool, unbroken: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill before or after the scores of an epoch, its picture, or the scores at the end, which `finish` records."""
    config, original = debug_config("mse", *OPTIONS), getattr(Pretraining, method)

    def killed(self: Pretraining, *arguments: Any) -> None:
        if after:
            original(self, *arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, method, killed)
        with pytest.raises(Killed):
            pretrain(config, tmp_path / "run", quiet=True)
    pretrain(config, tmp_path / "run", quiet=True)
    assert left_by(tmp_path / "run") == unbroken


@pytest.mark.parametrize("number", [pytest.param(3, marks=pytest.mark.slow), 6])
def test_a_run_killed_in_mid_epoch_goes_on_from_its_checkpoint_by_time(
    number: int, unbroken: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = debug_config("mse", *OPTIONS, "training.checkpoint_minutes=1e-9")
    with monkeypatch.context() as patch:
        before_step(patch, number, kill)
        with pytest.raises(Killed):
            pretrain(config, tmp_path / "run", quiet=True)
    assert Run(tmp_path / "run").step == number - 1
    pretrain(config, tmp_path / "run", quiet=True)
    assert left_by(tmp_path / "run") == unbroken


@pytest.mark.parametrize(("minutes", "steps"), [("1e-9", [*range(1, 9)]), slow("0", [4, 8]), slow("null", [4, 8])])
def test_checkpoints_come_by_time_beside_those_of_epochs(minutes: str, steps: list[int], tmp_path: Path) -> None:
    config = debug_config("mse", *OPTIONS, f"training.checkpoint_minutes={minutes}")
    pretrain(config, tmp_path / "run", quiet=True)
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path / "run" / "checkpoints")] == steps


@pytest.mark.slow
def test_the_minutes_between_checkpoints_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    pretrain(debug_config("mse", "training.checkpoint_minutes=3"), tmp_path / "run", quiet=True)


class TwoProcesses:
    """Accelerate's view of one of two processes, with what the other one answers."""

    num_processes = 2

    def __init__(self, *, is_main: bool, other: int, device: str = "cpu") -> None:
        self.is_main_process, self.other, self.device = is_main, other, torch.device(device)

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own.cpu(), torch.tensor([self.other])])


def test_processes_stop_and_save_together_and_the_main_one_keeps_the_time() -> None:
    asked = StopSignal()
    asked.number = signal.SIGTERM
    main_one = SavePoints(TwoProcesses(is_main=True, other=45), StopSignal(), minutes=1e-9)
    other = SavePoints(TwoProcesses(is_main=False, other=1), asked, minutes=1e-9)
    assert main_one.after(1, is_last=False) == other.after(1, is_last=False) == SavePoint(signal.SIGTERM, True)
    alone = SavePoints(TwoProcesses(is_main=False, other=0), StopSignal(), minutes=1e-9)
    assert alone.after(1, is_last=False) == SavePoint(0, False)
    for points, refused in ((alone, True), (SavePoints(TwoProcesses(is_main=True, other=2), StopSignal(), 0), False)):
        assert points.after(1, is_last=False, refused=refused) == SavePoint(0, True, refused=True)


def test_processes_on_gpus_ask_each_other_every_ten_steps() -> None:
    points = SavePoints(TwoProcesses(is_main=False, other=45, device="meta"), StopSignal(), minutes=None)
    points.accelerator.gather = lambda own: torch.tensor([45])
    asked = [bool(points.after(step, is_last=step == 24).stop) for step in range(1, 25)]
    assert [step for step, stops in enumerate(asked, 1) if stops] == [10, 20, 24]


@pytest.mark.slow
def test_a_run_whose_checkpoints_were_deleted_does_not_start_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    pretrain(debug_config("mse"), path, quiet=True)
    shutil.rmtree(path / "checkpoints")
    before = (path / "metrics.jsonl").read_bytes()
    command = ["pretrain", DEBUG, "mse", "--out", str(path)]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoints: is gone" in line
    assert "--fresh" in line
    assert (path / "metrics.jsonl").read_bytes() == before
    assert main([*command, "--fresh"]) == 0
    assert (path / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_again(
    unbroken: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        before_step(patch, 4, kill)
        with pytest.raises(Killed):
            pretrain(debug_config("mse", *OPTIONS), tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text()
    pretrain(debug_config("mse", *OPTIONS), tmp_path / "run", quiet=True)
    assert left_by(tmp_path / "run") == unbroken


@pytest.mark.slow
def test_a_data_worker_that_dies_is_started_again_and_nothing_changes(
    unbroken: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_a_worker() -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)  # the youngest: others may be a test's own

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    before_step(monkeypatch, 1, kill_a_worker)
    pretrain(debug_config("mse", *OPTIONS, "data.workers=2"), tmp_path / "run", quiet=True)
    assert left_by(tmp_path / "run") == unbroken
    assert "the workers are started again" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
def test_a_worker_that_dies_of_an_image_twice_ends_the_run_saved_and_names_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, read = os.getpid(), Shapes.__getitem__

    def deadly(self: Shapes, index: int) -> tuple[torch.Tensor, int]:
        if index == 7 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    monkeypatch.setattr(Shapes, "__getitem__", deadly)
    assert main(["pretrain", DEBUG, "mse", "data.workers=1", "training.epochs=3", "--out", str(tmp_path / "run")]) == 1
    printed = capsys.readouterr().err
    assert "while it read image 7, again after the workers were restarted" in printed
    assert "Traceback" not in printed
    saved = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert saved is not None
    assert saved.name in printed


@pytest.mark.parametrize(
    ("words", "is_lost"),
    [
        ("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3", True),
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/buffer.cc:1] Read error: Connection reset by peer", True),
        ("NCCL error in: remote process exited or there was a network error", True),
        ("size mismatch", False),
        ("Connection closed by peer", False),
    ],
)
def test_an_error_of_a_broken_connection_is_known_by_its_words(words: str, is_lost: bool) -> None:
    assert peers.is_broken_connection(RuntimeError(words)) == is_lost
    assert not peers.is_broken_connection(ValueError(words))


def test_a_process_that_leaves_while_they_join_is_a_broken_connection_and_a_port_in_use_is_none() -> None:
    assert peers.is_broken_connection(DistNetworkError("Broken pipe"))
    assert not peers.is_broken_connection(DistNetworkError("The server socket has failed to listen: EADDRINUSE"))


def test_a_process_that_is_gone_is_named_by_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PATIENCE", 0.0)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    own = this_process()
    run = [own, replace(own, pid=gone.pid), replace(own, pid=gone.pid, host="elsewhere")]
    assert peers.lost_peers(run) == [1]
    assert peers.lost_peers(run[::2]) == []


def test_of_a_process_in_another_container_of_the_same_name_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PATIENCE", 0.0)
    elsewhere = replace(this_process(), pid=2**22 + 1, namespace="pid:[4026531836000]")
    assert peers.lost_peers([elsewhere]) == []


def test_a_number_that_another_process_has_taken_over_is_of_one_that_is_gone() -> None:
    assert peers.lost_peers([replace(this_process(), process_start=1)]) == [0]


def test_a_process_that_died_is_gone_before_its_launcher_has_noticed() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    assert peers.lost_peers([replace(this_process(), pid=dead.pid)]) == [0]
    dead.wait()


def test_a_lost_process_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3")

    monkeypatch.setattr(peers, "PATIENCE", 0.0)
    monkeypatch.setattr(loop.peers, "lost_peers", lambda run: [0])
    before_step(monkeypatch, 2, broken)
    assert main(["pretrain", DEBUG, "mse", "--out", str(tmp_path / "run")]) == 1
    printed = capsys.readouterr().err
    assert "process 0 (pid " in printed
    assert "was lost after step 1; the same command goes on" in printed
    assert "Traceback" not in printed
    assert issubclass(LostProcessError, RuntimeError)


MONITORED = """
import sys, threading, time
from dataclasses import replace
from perceptual_mae.run.lock import this_process
from perceptual_mae.training import peers

peers.UNNOTICED = 0.3
run = [this_process(), replace(this_process(), pid=int(sys.argv[1]))]
try:
    with peers.PeerMonitor(run, lambda lost: f"runs/a: process {lost[0]} was lost"):
        if sys.argv[2] == "waits":
            threading.Event().wait(20)  # for what never comes
        if sys.argv[2] == "has an error":
            raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3")
except RuntimeError:
    threading.Event().wait(20)  # as cleaning up may
time.sleep(2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("does", "is_ended"), [("waits", True), ("has an error", True), ("is done", False)])
def test_who_does_not_notice_that_another_process_is_gone_is_ended_in_one_line(
    does: str, is_ended: bool, tmp_path: Path
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    printed = [tmp_path / "stdout", tmp_path / "stderr"]
    monitored = fork(["-c", MONITORED, str(gone.pid), does], printed)
    monitored.join(timeout=60)
    expected = (1, "pmae: runs/a: process 1 was lost\n") if is_ended else (0, "")
    assert (monitored.exitcode, printed[1].read_text()) == expected
