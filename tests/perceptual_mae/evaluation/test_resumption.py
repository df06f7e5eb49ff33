"""Fine-tuning and probes on augmented images lose nothing when they stop: as unbroken ones, bit for bit."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from interrupting import LIMITS, OFTEN, ask_to_stop, at_call, kill
from safetensors.torch import load_file
from torch import nn

from conftest import KilledError
from perceptual_mae import UserError
from perceptual_mae.cli import main
from perceptual_mae.evaluation import resumption
from perceptual_mae.evaluation.finetuning import training
from perceptual_mae.evaluation.finetuning.training import own_loss
from perceptual_mae.evaluation.representation import augmented_probe
from perceptual_mae.evaluation.resumption import Checkpoints, ResumableTrainings
from perceptual_mae.run import checkpoint, lock
from perceptual_mae.run.signals import Interrupted
from processes import fork, run_two_processes

pytestmark = pytest.mark.usefixtures("no_waiting_for_disk_and_memory")

# Three steps an epoch; what draws at random is all there.
FINETUNE = ("finetune", "{run}", "--epochs", "2", "--batch-size", "8", "--set", "drop_path=0.3", "--seeds", "0,1")
PROBE = ("probe", "{run}", "--protocol", "mae", "--epochs", "2", "--batch-size", "8", "--seeds", "0,1")
COMMANDS = {"finetune": ((*FINETUNE, *LIMITS), "finetune_mae_24_10"), "probe": ((*PROBE, *LIMITS), "probe_mae_24_10")}


@pytest.fixture
def run(labelled_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(labelled_run, tmp_path / "run"))


def words_of(name: str, run: Path) -> list[str]:
    """The command of a name; fine-tuning keeps its networks, too."""
    words = [word.format(run=run) for word in COMMANDS[name][0]]
    return [*words, "--save", str(run.parent / "kept")] if name == "finetune" else words


def outcome(name: str, run: Path) -> dict[str, Any]:
    """All that a command leaves: its report, and the weights of its networks."""
    weights = {
        str(file.relative_to(run.parent)): {key: value.tolist() for key, value in load_file(file).items()}
        for file in sorted((run.parent / "kept").rglob("*.safetensors"))
    }
    return {"report": json.loads((run / "evaluation" / f"{COMMANDS[name][1]}.json").read_text()), "weights": weights}


@pytest.fixture(scope="module")
def unbroken(labelled_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    outcomes = {}
    torch.set_num_threads(1)
    for name in COMMANDS:
        run = Path(shutil.copytree(labelled_run, tmp_path_factory.mktemp(name) / "run"))
        assert main(words_of(name, run)) == 0
        outcomes[name] = outcome(name, run)
    return outcomes


def unfinished(name: str, run: Path) -> Path:
    return run / "evaluation" / f"{COMMANDS[name][1]}.unfinished"


STEP = {"finetune": (training, "training_loss"), "probe": (augmented_probe, "_features_of")}


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("finetune", (2, 4, 5)),  # in mid-epoch; the last of a seed, before it is scored; in the next seed
        pytest.param("probe", (1, 4), marks=pytest.mark.slow),
        *(pytest.param("finetune", (steps,), marks=pytest.mark.slow) for steps in (1, 3, 5, 7, 12)),
        *(pytest.param("probe", (steps,), marks=pytest.mark.slow) for steps in (3, 6, 7)),
    ],
)
def test_what_was_stopped_and_goes_on_equals_what_was_not(
    name: str,
    stops: tuple[int, ...],
    run: Path,
    unbroken: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(augmented_probe, "IMAGES_AT_ONCE", 8)
    for steps in stops:
        with at_call(STEP[name], steps, ask_to_stop):
            assert main(words_of(name, run)) == 130
        last = capsys.readouterr().err.splitlines()[-1]
        assert f"saved in {unfinished(name, run)}; the same command goes on from there" in last
    assert main(words_of(name, run)) == 0
    assert outcome(name, run) == unbroken[name]
    assert not unfinished(name, run).exists()
    assert "goes on after step" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "step"),
    [("finetune", 5), *(pytest.param(*each, marks=pytest.mark.slow) for each in (("finetune", 3), ("probe", 5)))],
)
def test_what_was_killed_goes_on_from_its_last_checkpoint(
    name: str, step: int, run: Path, unbroken: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augmented_probe, "IMAGES_AT_ONCE", 8)
    monkeypatch.setattr(resumption, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(resumption, "LARGEST_SHARE", float("inf"))
    with at_call(STEP[name], step, kill), pytest.raises(KilledError):
        main(words_of(name, run))
    kept = checkpoint.checkpoints(unfinished(name, run))
    assert [checkpoint.step_of(path) for path in kept] == [step - 2, step - 1]
    (kept[-1] / "state.json").write_text("{")  # a damaged one is passed over
    assert main(words_of(name, run)) == 0
    assert outcome(name, run) == unbroken[name]


@pytest.mark.slow
def test_a_stop_while_images_are_scored_ends_at_once_and_trains_nothing_anew(
    run: Path, unbroken: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with at_call((training, "count_right"), 2, ask_to_stop):  # of the second seed
        assert main(words_of("finetune", run)) == 130
    assert "stopped during seed 1, test, saved in" in capsys.readouterr().err.splitlines()[-1]
    with at_call(STEP["finetune"], 1, kill):
        assert main(words_of("finetune", run)) == 0
    assert outcome("finetune", run) == unbroken["finetune"]


@pytest.mark.parametrize("name", ["probe", pytest.param("finetune", marks=pytest.mark.slow)])
def test_a_kill_between_the_result_and_its_checkpoints_end_is_harmless(
    name: str, run: Path, unbroken: dict[str, dict[str, Any]]
) -> None:
    with mock.patch.object(Checkpoints, "discard", kill), pytest.raises(KilledError):
        main(words_of(name, run))
    with at_call(STEP[name], 1, kill):
        assert main(words_of(name, run)) == 0
    assert outcome(name, run) == unbroken[name]
    assert not unfinished(name, run).exists()


@pytest.fixture(scope="module")
def stopped(labelled_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose fine-tuning and whose probe were stopped in their second step."""
    run = Path(shutil.copytree(labelled_run, tmp_path_factory.mktemp("stopped") / "run"))
    with mock.patch.object(augmented_probe, "IMAGES_AT_ONCE", 8):
        for name in COMMANDS:
            with at_call(STEP[name], 2, ask_to_stop):
                assert main(words_of(name, run)) == 130
    return run


def times_of(folder: Path) -> dict[Path, int]:
    """When each file was written; a lock comes and goes, which its folder shows."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "changed", "key"),
    [
        ("finetune", ["--lr", "1e-3"], "recipe.lr"),
        ("finetune", ["--epochs", "3"], "recipe.epochs"),
        ("finetune", ["--seeds", "1,0"], "seeds"),
        ("finetune", ["data.grayscale=0.5"], "section.grayscale"),
        ("probe", ["--epochs", "3"], "epochs"),
        ("probe", ["--baselines"], "extractors"),
    ],
)
def test_another_command_goes_on_from_nothing_of_this_one(
    name: str, changed: list[str], key: str, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times_of(stopped.parent)
    assert main([*words_of(name, stopped), *changed]) == 2
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pmae: ")]
    assert len(printed) == 1
    assert key in printed[0]
    assert "drop it with --fresh" in printed[0]
    assert times_of(stopped.parent) == before


@pytest.fixture
def other_process() -> Iterator[int]:
    """The number of a process that lives."""
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    process.kill()
    process.wait()


def lock_of(folder: Path, pid: int) -> Path:
    """Have a process hold a folder, as it does while it trains there."""
    holder = dataclasses.replace(lock.this_process(), pid=pid, process_start=lock._process_start(pid))
    (folder / lock.LOCK).write_text(json.dumps(dataclasses.asdict(holder)))
    return folder / lock.LOCK


@pytest.mark.parametrize("more", [[], ["--fresh"]])
@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_same_command_beside_itself_is_refused_in_one_line_and_touches_nothing(
    name: str, more: list[str], stopped: Path, tmp_path: Path, other_process: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    held = lock_of(unfinished(name, run), other_process)
    before = times_of(run)
    assert main([*words_of(name, run), *more]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pmae: ")]
    assert line.startswith(f"pmae: {unfinished(name, run)}: process {other_process} on ")
    assert "trains in it; wait until it ends" in line
    assert times_of(run) == before
    assert held.exists()


def test_what_another_call_goes_on_from_is_not_discarded(stopped: Path, tmp_path: Path, other_process: int) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    held = lock_of(unfinished("probe", run), other_process)
    Checkpoints(unfinished("probe", run)).discard()
    assert checkpoint.checkpoints(unfinished("probe", run))
    held.unlink()
    Checkpoints(unfinished("probe", run)).discard()
    assert not unfinished("probe", run).exists()


def test_a_stale_lock_alone_is_no_stopped_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished("finetune", run).mkdir(parents=True)
    ended = subprocess.Popen(["true"])
    ended.wait()
    lock_of(unfinished("finetune", run), ended.pid)
    (run.parent / "kept").mkdir()
    (run.parent / "kept" / "thesis.tex").write_text("precious")
    assert main(words_of("finetune", run)) == 2
    assert "is in use; name a new folder" in capsys.readouterr().err


def test_fresh_drops_what_was_kept(stopped: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    assert main([*words_of("probe", run), "--epochs", "1", "--fresh"]) == 0
    assert outcome("probe", run)["report"]["epochs"] == 1
    assert not unfinished("probe", run).exists()


def test_a_folder_in_use_is_refused_for_networks_of_a_command_that_was_not_stopped(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.parent / "kept").mkdir()
    (run.parent / "kept" / "thesis.tex").write_text("precious")
    assert main(words_of("finetune", run)) == 2
    assert "is in use; name a new folder" in capsys.readouterr().err


def test_a_rate_that_was_too_high_can_be_lowered_as_advised(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*words_of("finetune", run)[:-2], "--seeds", "0", "--epochs", "1", "--set", "warmup_epochs=0"]
    with mock.patch.object(resumption, "SECONDS_BETWEEN", 0.0):
        assert main([*words, "--set", "lr=1e30"]) == 2
    assert "lower the rate" in capsys.readouterr().err
    assert not unfinished("finetune", run).exists()
    assert main([*words, "--set", "lr=1e-3"]) == 0


def test_the_time_left_counts_from_where_a_call_goes_on(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    calls: list[tuple[str, int, int]] = []
    monkeypatch.setattr("perceptual_mae.progress.ProgressBar.__call__", lambda self, *call: calls.append(call))
    monkeypatch.setattr(augmented_probe, "IMAGES_AT_ONCE", 8)
    with at_call(STEP["probe"], 5, ask_to_stop):  # a step of the next seed
        assert main(words_of("probe", run)) == 130
    of_the_first = [call[1:] for call in calls if call[0] == "encoder, seed 0"]
    assert of_the_first == [(2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]
    assert [call[1:] for call in calls if call[0] == "encoder, seed 1"] == [(0, 6), (1, 6)]


@pytest.fixture
def trainings(tmp_path: Path) -> Callable[..., ResumableTrainings]:
    def opened(**settings: Any) -> ResumableTrainings:
        return ResumableTrainings(Accelerator(cpu=True), settings, Checkpoints.of(tmp_path / "a" / "score.json"))

    return opened


def test_results_and_the_training_under_way_are_kept_apart(
    trainings: Callable[..., ResumableTrainings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumption, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(resumption, "LARGEST_SHARE", float("inf"))
    layer = nn.Linear(2, 1)
    with trainings(rate=0.1, seeds=(0, 1)) as first:
        assert first.begin("one") == {}
        first.after_step(3, 3, {"layer": layer}, dict)
        first.finish({"accuracy": 0.1 + 0.2})
        first.begin("two")
        first.after_step(2, 3, {"layer": layer}, lambda: {"more": [1, None]})
    other = nn.Linear(2, 1)
    with pytest.raises(UserError, match=r"score.unfinished: is of a stopped command with other values of rate, more;"):
        trainings(rate=0.2, seeds=(0, 1), more=True).__enter__()
    with trainings(rate=0.1, seeds=[0, 1]) as second:
        assert second.results == {"one": {"accuracy": 0.1 + 0.2}}
        assert second.begin("two") == {"name": "two", "step": 2, "more": [1, None], "scaler": None}
        second.load({"layer": other})
        assert torch.equal(other.weight, layer.weight)
        second.discard()
    with trainings(rate=0.2) as third:
        assert third.results == {}
    assert not (tmp_path / "a" / "score.unfinished").exists()


def test_without_checkpoints_nothing_is_kept_and_no_signal_is_taken(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ResumableTrainings(Accelerator(cpu=True)) as kept:
        assert signal.getsignal(signal.SIGTERM) is before
        assert kept.begin("one") == {}
        kept.after_step(1, 1, {}, dict)
        kept.finish(1)
    assert kept.results == {"one": 1}


def test_a_stop_before_anything_was_saved_says_so(trainings: Callable[..., ResumableTrainings]) -> None:
    with trainings() as opened:
        ask_to_stop()
        with pytest.raises(Interrupted, match="with nothing to save yet; the same command starts anew"):
            opened.stoppable(lambda *_: None)("test", 1, 2)


def test_losses_of_another_number_of_processes_are_shared() -> None:
    accelerator = Accelerator(cpu=True)
    assert own_loss([0.1], accelerator).item() == torch.tensor(0.1).item()
    assert own_loss([1.0, 2.0], accelerator).item() == 1.5


def more_epochs(name: str, run: Path) -> list[str]:
    words = words_of(name, run)
    words[words.index("--epochs") + 1] = "40"
    return words


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        pytest.param(name, sent, marks=pytest.mark.slow if sent == signal.SIGKILL else pytest.mark.exhaustive)
        for name in COMMANDS
        for sent in (signal.SIGKILL, signal.SIGTERM)
    ],
)
def test_a_process_that_is_ended_goes_on_by_the_same_command(
    name: str, sent: signal.Signals, run: Path, labelled_run: Path, tmp_path: Path
) -> None:
    whole = Path(shutil.copytree(labelled_run, tmp_path / "whole" / "run"))
    assert main(more_epochs(name, whole)) == 0
    printed = [tmp_path / "stdout", tmp_path / "stderr"]
    process = fork(["-c", OFTEN, *more_epochs(name, run)], printed)
    deadline = time.monotonic() + 120
    while not list(unfinished(name, run).glob("step_*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, sent)
    process.join(timeout=60)
    assert process.exitcode == (130 if sent is signal.SIGTERM else -sent)
    assert "Traceback" not in printed[1].read_text()
    assert not (run / "evaluation" / f"{COMMANDS[name][1]}.json").exists()
    assert main(more_epochs(name, run)) == 0
    assert outcome(name, run) == outcome(name, whole)


WAITS_FOR_A_FILE = """
import time
from pathlib import Path
from perceptual_mae.evaluation.representation import augmented_probe

def waiting(*arguments, step=augmented_probe._features_of):
    while not Path(FILE).exists():
        time.sleep(0.05)
    return step(*arguments)

augmented_probe._features_of = waiting
"""


@pytest.mark.slow
def test_of_two_processes_of_one_command_the_first_is_not_disturbed(
    run: Path, unbroken: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    script = WAITS_FOR_A_FILE.replace("FILE", repr(str(tmp_path / "go"))) + OFTEN
    first = fork(["-c", script, *words_of("probe", run)], [tmp_path / "stdout", tmp_path / "stderr"])
    deadline = time.monotonic() + 120
    while not (unfinished("probe", run) / lock.LOCK).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for more in ([], ["--fresh"]):
        assert main([*words_of("probe", run), *more]) == 2
    (tmp_path / "go").touch()
    first.join(timeout=120)
    assert first.exitcode == 0
    assert outcome("probe", run) == unbroken["probe"]


BY_TWO = """
import os, signal, sys
import torch
from perceptual_mae.cli import main
from perceptual_mae.evaluation.finetuning import training
from perceptual_mae.evaluation.representation import augmented_probe

augmented_probe.IMAGES_AT_ONCE = 8
stop_at, code, steps = int(sys.argv[1]), int(sys.argv[2]), []
for module, name in ((training, "training_loss"), (augmented_probe, "_features_of")):
    def counted(*arguments, function=getattr(module, name)):
        steps.append(1)
        if len(steps) == stop_at and torch.distributed.get_rank() == 1:  # one of them alone
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments)
    setattr(module, name, counted)
assert main(sys.argv[3:]) == code
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", list(COMMANDS))
def test_two_processes_stop_together_and_go_on_as_two_unbroken_ones(
    name: str, run: Path, labelled_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "by_two.py").write_text(BY_TWO)
    whole = Path(shutil.copytree(labelled_run, tmp_path / "whole" / "run"))
    run_two_processes(tmp_path / "by_two.py", 0, 0, *words_of(name, whole))
    run_two_processes(tmp_path / "by_two.py", 2, 130, *words_of(name, run))
    run_two_processes(tmp_path / "by_two.py", 0, 0, *words_of(name, run))
    assert outcome(name, run) == outcome(name, whole)
