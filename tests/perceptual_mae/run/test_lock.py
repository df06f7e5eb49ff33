"""One process at a time trains in a folder; who is gone is recognised."""

import dataclasses
import json
import os
import signal
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from conftest import DEBUG, debug_config, slow
from perceptual_mae import Run, UserError, pretrain
from perceptual_mae.cli import main
from perceptual_mae.run import lock
from perceptual_mae.run.lock import LOCK, SILENCE, FolderLock, Holder, read_holder, this_process
from perceptual_mae.training.trainer import Trainer
from processes import fork


def leave_lock(folder: Path, holder: Holder, silent_for: float = 0.0) -> None:
    """Write the lock of another process, which gave its last sign of life so many seconds ago."""
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps(asdict(holder)))
    last = time.time() - silent_for
    os.utime(folder / LOCK, (last, last))


def ended_process() -> int:
    """Return the number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def holder_of(kind: str) -> Holder:
    """Return a holder that lives, here or elsewhere, or one that is gone."""
    own = this_process()
    changes = {
        "alive": {},
        "ended": {"pid": ended_process()},
        "number taken by another": {"process_start": 1},
        "other host": {"host": "elsewhere"},
        "other boot, perhaps another machine of that name": {"boot": "another"},
        "other container": {"namespace": "pid:[1]"},
    }[kind]
    return dataclasses.replace(own, **changes)


def test_a_second_trainer_is_refused_and_the_folder_is_free_afterwards(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "run"):
        with pytest.raises(UserError, match=rf"process {os.getpid()} on \S+ \(since 20.*wait until.*--out"):
            FolderLock(tmp_path / "run").acquire()
        assert read_holder(tmp_path / "run" / LOCK).pid == os.getpid()
    assert not (tmp_path / "run").exists()  # nothing was written


@pytest.mark.parametrize(
    ("kind", "silent_for", "is_free"),
    [
        ("alive", 10 * SILENCE, False),
        ("ended", 0, True),
        ("number taken by another", 0, True),
        ("other host", 10, False),
        ("other host", SILENCE + 60, True),
        ("other boot, perhaps another machine of that name", 10, False),
        ("other boot, perhaps another machine of that name", SILENCE + 60, True),
        ("other container", 10, False),
        ("other container", SILENCE + 60, True),
    ],
)
def test_a_stale_lock_is_told_from_that_of_a_process_that_lives(
    kind: str, silent_for: float, is_free: bool, tmp_path: Path
) -> None:
    holder = holder_of(kind)
    leave_lock(tmp_path, holder, silent_for)
    taken = FolderLock(tmp_path)
    if is_free:
        with taken:
            assert taken.replaced == holder
            assert read_holder(tmp_path / LOCK).pid == os.getpid()
        assert not list(tmp_path.iterdir())
    else:
        with pytest.raises(UserError, match=f"process {holder.pid} on {holder.host}"):
            taken.acquire()
        assert read_holder(tmp_path / LOCK) == holder
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_of_another_machine_the_refusal_says_how_to_go_on_where_its_process_is_gone(tmp_path: Path) -> None:
    leave_lock(tmp_path, holder_of("other host"))
    with pytest.raises(UserError, match=rf"if it is gone, remove {tmp_path / LOCK}, or .* silent for 10 minutes"):
        FolderLock(tmp_path).acquire()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "a"}'])
def test_a_broken_lock_is_replaced(content: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(content)
    with FolderLock(tmp_path):
        assert read_holder(tmp_path / LOCK).pid == os.getpid()


def test_a_process_that_was_killed_and_is_still_listed_is_gone(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    started = lock._process_start(process.pid)
    process.kill()
    deadline = time.monotonic() + 5
    while lock._process_start(process.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.001)
    holder = dataclasses.replace(this_process(), pid=process.pid, process_start=started)
    assert holder.is_gone(0)
    process.wait()


def test_a_lock_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with FolderLock(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        deadline = time.monotonic() + 5
        while (tmp_path / LOCK).stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert (tmp_path / LOCK).stat().st_mtime > 0


def test_a_lock_that_was_taken_over_is_noticed_and_left_alone(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as held:
        held.check()
        (tmp_path / LOCK).unlink()
        held.check()  # removed by hand, and nobody else came
        assert read_holder(tmp_path / LOCK).pid == os.getpid()
        leave_lock(tmp_path, holder_of("other host"))
        with pytest.raises(UserError, match=r"elsewhere .* has begun to train here meanwhile"):
            held.check()
    assert read_holder(tmp_path / LOCK).host == "elsewhere"


def test_the_lock_of_a_parent_is_not_given_back_by_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FolderLock(tmp_path):
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            lock.release_all()
        assert (tmp_path / LOCK).exists()
        lock.release_all()
        assert not (tmp_path / LOCK).exists()


def test_where_there_are_no_links_the_lock_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    with FolderLock(tmp_path):
        assert read_holder(tmp_path / LOCK).pid == os.getpid()
        with pytest.raises(UserError, match="trains in it"):
            FolderLock(tmp_path).acquire()


@pytest.fixture
def busy(tmp_path: Path) -> Path:
    """A finished run in whose folder another process trains."""
    pretrain(debug_config("mse", "training.epochs=1", "evaluation.every=0"), tmp_path / "run", quiet=True)
    leave_lock(tmp_path / "run", holder_of("other host"))
    return tmp_path / "run"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_command_that_trains_refuses_a_folder_in_use_in_one_line_and_writes_nothing(
    busy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(busy)
    arguments = [DEBUG, "mse", "training.epochs=1", "evaluation.every=0", "--out", str(busy)]
    assert main(["pretrain", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"pmae: {busy}: process {os.getpid()} on elsewhere (since ")
    assert len(printed.splitlines()) == 1
    assert files_of(busy) == before


@pytest.mark.parametrize("command", ["sweep", slow("finetune"), slow("sharpen")])
def test_other_commands_that_train_refuse_a_folder_in_use(
    command: str, busy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "used"
    leave_lock(folder, holder_of("other host"))
    arguments = {
        "sweep": ["sweep", DEBUG, "mse", "--seeds", "0", "--out"],
        "finetune": ["finetune", str(busy), "--recipe", "small", "--epochs", "1", "--batch-size", "16", "--save"],
        "sharpen": ["sharpen", str(busy), "ls_gan_p", "--out"],
    }
    assert main([*arguments[command], str(folder)]) == 2
    printed = capsys.readouterr().err
    assert f"pmae: {folder}: process {os.getpid()} on elsewhere (since " in printed
    assert [path.name for path in folder.iterdir()] == [LOCK]


def test_what_a_run_that_was_killed_at_once_left_is_a_free_folder(tmp_path: Path) -> None:
    leave_lock(tmp_path, holder_of("ended"))
    (tmp_path / "log.txt").write_text("")
    assert lock.is_unused(tmp_path)
    (tmp_path / "thesis.tex").write_text("precious")
    assert not lock.is_unused(tmp_path)
    (tmp_path / "thesis.tex").unlink()
    (tmp_path / LOCK).unlink()  # as it fails, instead, a start gives its lock back
    assert lock.is_unused(tmp_path)


def test_a_run_is_scored_while_another_process_trains_it(busy: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(busy), "--metrics", "psnr", "--out", str(tmp_path / "scores.json")]) == 0
    assert Run(busy).step == 4


def test_a_run_that_fails_gives_its_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        assert read_holder(tmp_path / "run" / LOCK).pid == os.getpid()
        raise KeyError("ours")

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(KeyError):
        pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_stale_lock_of_a_run_is_taken_over_and_that_is_said(tmp_path: Path) -> None:
    leave_lock(tmp_path / "run", holder_of("ended"))
    pretrain(debug_config("mse", "training.epochs=1"), tmp_path / "run", quiet=True)
    assert "ended without giving this folder back" in (tmp_path / "run" / "log.txt").read_text()
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_run_whose_folder_was_taken_over_stops_before_it_writes_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def suspended(self: Trainer, *arguments: object) -> object:
        leave_lock(tmp_path / "run", holder_of("other host"))
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", suspended)
    with pytest.raises(UserError, match=r"elsewhere .* has begun to train here meanwhile"):
        pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "is_left"), [(signal.SIGKILL, True), (signal.SIGTERM, False)])
def test_of_the_signals_only_a_kill_leaves_a_lock_and_the_same_command_goes_on(
    number: int, is_left: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pretrain", DEBUG, "mse", "training.epochs=400", "evaluation.every=0", "--out", str(tmp_path / "run")]
    process = fork(["-m", "perceptual_mae.cli", *arguments], [tmp_path / "stdout", tmp_path / "stderr"])
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert main(arguments) == 2
    assert f"process {process.pid} on " in capsys.readouterr().err
    os.kill(process.pid, number)
    process.join(timeout=60)
    assert (tmp_path / "run" / LOCK).exists() == is_left
    with FolderLock(tmp_path / "run"):
        pass
