"""`pmae sweep`: what is run, skipped, resumed, refused and written. Cells run in this process but in one test."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from conftest import DEBUG
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
            stop.requested = True
            return Ending(130)
        return Ending(main(["pretrain", *arguments, "--out", str(out)]))


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    launcher = InProcess()
    monkeypatch.setattr("perceptual_mae.sweep.launch.launch", launcher)
    return launcher


def sweep(out: Path, *options: str, base: Sequence[str] = BASE) -> int:
    return main(["sweep", *base, *options, "--out", str(out)])


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


def test_a_misspelt_metric_stops_a_sweep_after_its_first_run(
    cells: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    for _ in range(2):
        assert sweep(out, *GRID, "--metric", "psnr_maskd") == 2
        assert "did you mean 'psnr_masked'?" in capsys.readouterr().err
    assert cells.ran == ["lr-1e-3"]


@pytest.mark.slow
def test_cells_run_in_processes_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    assert sweep(out, "--seeds", "3") == 0
    command_line = json.loads((out / "seed-3" / "environment.json").read_text())["command"]
    assert command_line == ["pretrain", *BASE, "training.seed=3", "--out", str(out / "seed-3")]
    assert "images/s" in capsys.readouterr().err  # what the run says as it goes on is passed on


@pytest.mark.slow
def test_the_last_words_of_a_process_are_its_reason(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    assert sweep(out, "--grid", "training.precision=fp16,no") == 1  # fp16 is sound, and this machine cannot train it
    assert (out / "precision-no" / "summary.json").exists()
    assert "fp16 needs a GPU" in json.loads((out / "sweep.json").read_text())["cells"]["precision-fp16"]["reason"]
