"""`pmae sweep`: what is run, skipped, resumed, refused and written. Cells run in this process but in one test."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import DEBUG, KilledError, halved, killed_at
from perceptual_mae import Run
from perceptual_mae.cli import main
from perceptual_mae.run.signals import StopSignal
from perceptual_mae.sweep.launch import Ending

BASE = [DEBUG, "mse", "training.epochs=1", "training.epoch_images=16", "evaluation.limit=4"]
GRID = ["--grid", "optimizer.lr=1e-3,2e-3"]


class InProcess:
    """Runs cells by the same command in this process; names of `failing` fail, at `stop_at` the user stops."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failing: set[str] = set()
        self.stop_at = ""

    def __call__(self, arguments: Sequence[str], out: Path, tell: Callable[[str], None], stop: StopSignal) -> Ending:
        self.ran.append(out.name)
        if out.name in self.failing:
            return Ending(2, "out of luck", ("pmae: out of luck",))
        if out.name == self.stop_at:
            stop.number = signal.SIGINT
            return Ending(130)
        return Ending(main(["pretrain", *arguments, "--out", str(out)]))


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    launcher = InProcess()
    monkeypatch.setattr("perceptual_mae.sweep.launch.launch", launcher)
    return launcher


def sweep(out: Path, *options: str, base: Sequence[str] = BASE) -> int:
    return main(["sweep", *base, *options, "--out", str(out)])


@pytest.mark.slow
def test_a_sweep_makes_run_folders_a_table_and_a_curve(
    cells: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert sweep(out, *GRID, "--seeds", "0,1", "--metric", "psnr_masked", "--metric", "baselines.mean_color.psnr") == 0
    names = ["lr-1e-3_seed-0", "lr-1e-3_seed-1", "lr-2e-3_seed-0", "lr-2e-3_seed-1"]
    assert cells.ran == names
    assert [Run(out / name).config.training.seed for name in names] == [0, 1, 0, 1]
    assert Run(out / names[2]).config.optimizer.lr == 2e-3
    printed = capsys.readouterr()
    assert printed.out.splitlines() == (out / "results.md").read_text().splitlines()
    assert "run 4 of 4, lr-2e-3_seed-1, left 0:00:0" in printed.err
    assert f"next: pmae compare {out}/*/" in printed.err.splitlines()[-1]
    values = [json.loads((out / name / "summary.json").read_text())["psnr_masked"] for name in names[:2]]
    found = json.loads((out / "results.json").read_text())["points"][0]["scores"]["psnr_masked"]
    assert found["mean"] == pytest.approx(sum(values) / 2)
    assert found["n"] == 2
    with Image.open(out / "curve.png") as figure:
        assert figure.format == "PNG"
    record = json.loads((out / "sweep.json").read_text())
    assert {name: ending["status"] for name, ending in record["cells"].items()} == dict.fromkeys(names, "finished")
    assert main(["compare", *(str(out / name) for name in names)]) == 0
    assert "MSE (optimizer.lr=0.001)" in capsys.readouterr().out


@pytest.mark.slow
def test_finished_cells_are_skipped_and_half_done_ones_resumed(cells: InProcess, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    assert sweep(out, *GRID) == 0
    (out / "lr-2e-3" / "summary.json").unlink()  # as if it had been stopped: its checkpoint is there
    before = (out / "lr-1e-3" / "summary.json").stat().st_mtime_ns
    steps = len((out / "lr-2e-3" / "metrics.jsonl").read_text().splitlines())
    assert sweep(out, *GRID) == 0
    assert cells.ran == ["lr-1e-3", "lr-2e-3", "lr-2e-3"]
    assert (out / "lr-1e-3" / "summary.json").stat().st_mtime_ns == before
    assert len((out / "lr-2e-3" / "metrics.jsonl").read_text().splitlines()) == steps  # nothing was trained anew
    assert sweep(out, "--grid", "optimizer.lr=1e-3,2e-3,3e-3") == 0  # a grid may grow
    assert cells.ran[3:] == ["lr-3e-3"]
    assert set(json.loads((out / "sweep.json").read_text())["cells"]) == {"lr-1e-3", "lr-2e-3", "lr-3e-3"}


@pytest.mark.slow
def test_a_cell_that_fails_is_written_down_and_the_others_go_on(
    cells: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    cells.failing = {"lr-1e-3"}
    assert sweep(out, *GRID) == 1
    output = capsys.readouterr()
    assert cells.ran == ["lr-1e-3", "lr-2e-3"]
    assert output.err.splitlines()[-1].startswith("failed: lr-1e-3 (why: ")
    ending = json.loads((out / "sweep.json").read_text())["cells"]["lr-1e-3"]
    assert (ending["status"], ending["code"], ending["reason"]) == ("failed", 2, "out of luck")
    assert "not finished" in output.out
    cells.failing = set()
    assert sweep(out, *GRID) == 0
    assert cells.ran[2:] == ["lr-1e-3"]
    assert json.loads((out / "sweep.json").read_text())["cells"]["lr-1e-3"]["status"] == "finished"


def test_a_stopped_sweep_leaves_with_130_and_goes_on_by_the_same_command(cells: InProcess, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    cells.stop_at = "lr-2e-3"
    assert sweep(out, *GRID) == 130
    assert not (out / "results.md").exists()
    cells.stop_at = ""
    assert sweep(out, *GRID) == 0
    assert cells.ran == ["lr-1e-3", "lr-2e-3", "lr-2e-3"]


def test_a_dry_run_lists_the_cells_and_writes_nothing(
    cells: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert sweep(out, "--grid", "layer=mse,l1", "--seeds", "5", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [
        ["new", f"{out / 'layer-mse_seed-5'}:"],
        ["new", f"{out / 'layer-l1_seed-5'}:"],
    ]
    assert lines[1].endswith(" ".join(["pmae pretrain", DEBUG, "mse", "l1", *BASE[2:], "training.seed=5"]))
    assert lines[2] == "2 runs, 2 of them to go"
    assert not out.exists()
    assert cells.ran == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "optimizer.lrr=1,2"], "did you mean 'lr'"),
        (["--grid", "optimizer.lr=1e-3,many"], "found 'many'"),
        (["--grid", "layer=mse,l11"], "unknown layer 'l11'"),
        (["--grid", "optimizer.lr=1e-3,0.001"], "are the same run"),
        (["--grid", "data.image_size=32,36"], "not a multiple of patch"),
        (["--grid", "generator.init_from=null,/nowhere/run"], "generator.init_from: /nowhere/run: does not exist"),
        (["--seeds", "0,0"], "--seeds is '0,0'"),
        (["--seeds", "0,a"], "--seeds is '0,a'"),
        ([], "nothing to sweep over"),
    ],
)
def test_a_mistake_in_any_cell_is_reported_before_the_first_is_run(
    options: list[str], message: str, cells: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path / "sweep", *options) == 2
    output = capsys.readouterr().err
    assert message in output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []
    assert cells.ran == []


@pytest.mark.slow
def test_another_base_and_somebodys_folder_are_refused(
    cells: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert sweep(out, "--grid", "optimizer.lr=1e-3") == 0
    changed = [*BASE[:2], "training.epochs=2", *BASE[3:]]
    capsys.readouterr()
    assert sweep(out, *GRID, base=changed) == 2
    assert "was begun with other values of training.epochs" in capsys.readouterr().err
    assert sweep(out, *GRID, "--dry-run", base=[*BASE, "data.workers=1"]) == 0  # nothing scores stand on
    (tmp_path / "thesis.tex").write_text("precious")
    assert sweep(tmp_path, *GRID) == 2
    assert "holds files that are not a sweep's" in capsys.readouterr().err
    assert cells.ran == ["lr-1e-3"]


@pytest.mark.slow
def test_a_misspelt_metric_stops_a_sweep_after_its_first_run(
    cells: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    for _ in range(2):
        assert sweep(out, *GRID, "--metric", "psnr_maskd") == 2
        assert "did you mean 'psnr_masked'?" in capsys.readouterr().err
    assert cells.ran == ["lr-1e-3"]


def left_by(out: Path) -> dict[str, Any]:
    """All of a sweep that a reader takes something from; times aside."""
    names = sorted(path.name for path in out.iterdir() if path.is_dir())
    record = json.loads((out / "sweep.json").read_text())
    weights = {name: load_file(Run(out / name).checkpoint / "generator.safetensors") for name in names}
    return {
        "files": sorted(path.name for path in out.iterdir()),
        "results": [(out / name).read_text() for name in ("results.md", "results.json")],
        "record": record | {"cells": {name: ending["status"] for name, ending in record["cells"].items()}},
        "summaries": {name: json.loads((out / name / "summary.json").read_text()) for name in names},
        "weights": {name: {key: value.tolist() for key, value in each.items()} for name, each in weights.items()},
    }


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("unbroken") / "sweep"
    torch.set_num_threads(1)
    with mock.patch("perceptual_mae.sweep.launch.launch", InProcess()):
        assert sweep(out, *GRID) == 0
    return left_by(out)


@pytest.mark.parametrize(
    ("place", "number"),
    halved(
        [
            ("perceptual_mae.run.folder.describe", 1),  # the first cell's folder has a log alone
            ("perceptual_mae.training.trainer_state.state_dict", 2),
            ("perceptual_mae.training.held_out.score_training", 2),  # the second cell is trained and not scored
            ("perceptual_mae.training.loop.write_json", 2),
            ("perceptual_mae.training.loop.write_json", 1),  # scored, and its summary not written
            ("perceptual_mae.sweep.folder.write_json", 3),
            ("perceptual_mae.cli.sweep.write_json", 1),  # between both files of the table
            ("perceptual_mae.sweep.folder.write_json", 1),  # nothing is recorded
            ("perceptual_mae.sweep.folder.write_json", 2),  # the first cell is finished and not recorded
            ("perceptual_mae.cli.sweep.write_atomically", 1),
            ("perceptual_mae.sweep.results.save_figure", 1),
        ]
    ),
)
def test_a_sweep_that_was_killed_goes_on_to_what_an_unbroken_one_leaves(
    place: str, number: int, cells: InProcess, tmp_path: Path, unbroken: dict[str, Any]
) -> None:
    out = tmp_path / "sweep"
    with killed_at(place, number), pytest.raises(KilledError):
        sweep(out, *GRID)
    assert sweep(out, *GRID) == 0
    assert left_by(out) == unbroken


@pytest.mark.slow
def test_a_sweep_killed_while_it_wrote_its_first_record_is_gone_on_with(cells: InProcess, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    out.mkdir()
    (out / ".sweep.json.partial").write_text('{"layers": [')
    assert sweep(out, "--grid", "optimizer.lr=1e-3") == 0
    assert sorted(path.name for path in out.iterdir() if not path.name.endswith(".partial")) == [
        "curve.png",
        "lr-1e-3",
        "results.json",
        "results.md",
        "sweep.json",
    ]


def children_of(process: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if int(status.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(status.parent.name))
    return found


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed sweep leaves its run behind")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_whose_process_is_ended_takes_its_run_along_and_goes_on(sent: signal.Signals, tmp_path: Path) -> None:
    base = [DEBUG, "mse", "training.epochs=40", "training.log_every=8", "evaluation.every=0"]
    whole, out = tmp_path / "whole", tmp_path / "sweep"
    with mock.patch("perceptual_mae.sweep.launch.launch", InProcess()):
        assert sweep(whole, *GRID, base=base) == 0
    command = [sys.executable, "-m", "perceptual_mae.cli", "sweep", *base, *GRID, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(out.glob("lr-1e-3/checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = children_of(process.pid)
    process.send_signal(sent)
    assert process.wait(timeout=60) == (130 if sent is signal.SIGTERM else -sent)
    assert children
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert not (out / "lr-1e-3" / "summary.json").exists()
    with mock.patch("perceptual_mae.sweep.launch.launch", InProcess()):
        assert sweep(out, *GRID, base=base) == 0
    assert left_by(out) == left_by(whole)


@pytest.mark.slow
def test_cells_run_in_processes_of_their_own_whose_last_words_are_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert sweep(out, "--grid", "training.precision=fp16,no") == 1  # fp16 is sound, and this machine cannot train it
    assert (out / "precision-no" / "summary.json").exists()
    assert "fp16 needs a GPU" in json.loads((out / "sweep.json").read_text())["cells"]["precision-fp16"]["reason"]
    command_line = json.loads((out / "precision-no" / "environment.json").read_text())["command"]
    assert command_line == ["pretrain", *BASE, "training.precision=no", "--out", str(out / "precision-no")]
    assert "images/s" in capsys.readouterr().err  # what the run says as it goes on is passed on
