"""A checkpoint is written while training goes on, holds what was there when it was asked for, and fails in a line."""

import errno
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from conftest import DEBUG, KilledError, debug_config
from perceptual_mae import Run, UserError, pretrain
from perceptual_mae.cli import main
from perceptual_mae.run import checkpoint
from perceptual_mae.run.checkpoint_writer import CheckpointWriter


class Gate:
    """Lets a checkpoint be written only once it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.running, self.most, save = threading.Event(), 0, 0, checkpoint.save

        def waiting(*arguments: Any) -> Path:
            self.running += 1
            self.most = max(self.most, self.running)
            assert self.opened.wait(20)
            result = save(*arguments)
            self.running -= 1
            return result

        monkeypatch.setattr(checkpoint, "save", waiting)


def test_a_checkpoint_holds_what_was_there_when_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, writer = Gate(monkeypatch), CheckpointWriter()
    weight, metadata, after = torch.ones(3, 4).t(), {"alarms": {"count": 1}}, list[str]()
    writer.write(tmp_path, 1, {"generator": {"weight": weight}}, metadata, lambda: after.append("pruned"))
    weight.zero_()
    metadata["alarms"]["count"] = 2
    assert checkpoint.checkpoints(tmp_path) == []
    assert after == []
    gate.opened.set()
    writer.wait()
    path = checkpoint.newest(tmp_path)
    assert path is not None
    assert torch.equal(checkpoint.load_tensors(path, "generator")["weight"], torch.ones(4, 3))
    assert checkpoint.load_metadata(path)["alarms"] == {"count": 1}
    assert after == ["pruned"]


def test_one_is_written_at_a_time_in_the_order_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, writer = Gate(monkeypatch), CheckpointWriter()
    gate.opened.set()
    for step in range(1, 6):
        writer.write(tmp_path, step, {"generator": {"weight": torch.full((2,), float(step))}}, {})
        assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)][: step - 1] == [*range(1, step)]
    writer.wait()
    assert gate.most == 1
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("failure", [UserError("the disk is full"), KilledError()])
def test_what_a_write_raised_comes_once_at_the_next_one(tmp_path: Path, failure: BaseException) -> None:
    writer, group = CheckpointWriter(), {"generator": {"weight": torch.ones(1)}}
    for ask in (writer.wait, lambda: writer.write(tmp_path, 2, group, {})):
        with mock.patch.object(checkpoint, "save", side_effect=failure):
            writer.write(tmp_path, 1, group, {})
            with pytest.raises(type(failure)):
                ask()
    writer.wait()
    writer.write(tmp_path, 3, group, {})
    writer.wait()
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [3]


def test_a_failure_after_another_end_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = CheckpointWriter()
    with mock.patch.object(checkpoint, "save", side_effect=UserError("the disk is full")):
        writer.write(tmp_path, 1, {}, {})
        writer.close()
    assert "the last checkpoint was not written: the disk is full" in caplog.text


def test_training_goes_on_while_a_checkpoint_is_written_and_the_end_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perceptual_mae.training.trainer import Trainer

    gate, step, taken = Gate(monkeypatch), Trainer.step, []

    def counted(self: Trainer, *arguments: Any) -> dict[str, torch.Tensor]:
        taken.append(len(checkpoint.checkpoints(tmp_path / "run/checkpoints")))
        if len(taken) == 6:  # the second of the second epoch: the first checkpoint is still on its way
            gate.opened.set()
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", counted)
    pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    assert taken[:6] == [0] * 6
    assert Run(tmp_path / "run").step == 8
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]


def test_a_full_disk_ends_a_run_at_its_next_checkpoint_and_the_one_before_is_intact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file, calls = checkpoint.save_file, []

    def full(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 3:  # generator, optimizer and balance of the first
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(*arguments)

    with mock.patch.object(checkpoint, "save_file", full):
        assert main(["pretrain", DEBUG, "mse", "training.epochs=3", "--out", str(tmp_path / "run")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pmae: ")]
    assert "step_00000008: could not write the checkpoint (the disk is full)" in line
    assert "the last one, step_00000004, is intact" in line
    assert Run(tmp_path / "run").step == 4
