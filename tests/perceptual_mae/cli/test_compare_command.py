"""`pmae compare`: what is printed, what is written, and what comes of mistakes."""

import json
from pathlib import Path

import pytest
from PIL import Image

from conftest import DEBUG
from perceptual_mae.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two seeds of MSE with scores of their representation, and LS-GAN-P without."""
    folder = tmp_path_factory.mktemp("compared")
    made = {"mse_0": ["mse"], "mse_1": ["mse", "training.seed=1"], "ls_gan_p": ["ls_gan_p"]}
    quick = ["training.epochs=1", "training.epoch_images=16", "evaluation.limit=4"]
    for name, layers in made.items():
        assert main(["pretrain", DEBUG, *layers, *quick, "--out", str(folder / name)]) == 0
    for name in ("mse_0", "mse_1"):
        assert main(["probe", str(folder / name), "--seeds", "0", "--limit", "40"]) == 0
        assert main(["knn", str(folder / name), "--neighbours", "5,20"]) == 0
    return [str(folder / name) for name in made]


@pytest.mark.slow
def test_real_runs_are_compared_printed_and_written(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tables"
    assert main(["compare", *runs, "--out", str(out), "--title", "Debug $1 & 2"]) == 0
    printed = capsys.readouterr()
    assert printed.err.strip() == f"written to {out}"
    assert printed.out == (out / "compare.md").read_text()
    assert {path.name for path in out.iterdir()} == {
        *("compare.md", "compare.tex", "compare.json", "compare.png", "scatter.png")
    }
    groups = json.loads((out / "compare.json").read_text())["groups"]
    assert [(group["label"], len(group["runs"])) for group in groups] == [("MSE", 2), ("LS-GAN-P", 1)]
    summaries = [json.loads((Path(run) / "summary.json").read_text())["psnr_masked"] for run in runs[:2]]
    found = groups[0]["scores"]["summary.psnr_masked"]
    assert found["mean"] == pytest.approx(sum(summaries) / 2)
    assert found["deviation"] == pytest.approx(abs(summaries[0] - summaries[1]) / 2**0.5)
    for name in ("compare.png", "scatter.png"):
        with Image.open(out / name) as figure:
            assert figure.format == "PNG"


@pytest.mark.slow
@pytest.mark.parametrize(("form", "start"), [("latex", "% Comparison;"), ("json", '{\n  "kind": "compare"')])
def test_other_forms_are_printed_on_demand(
    form: str, start: str, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *runs, "--format", form]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(start)
    assert "--out FOLDER" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "{run}"], "is named twice"),
        (["{run}", "{empty}"], "is not a run folder"),
        (["{run}", "--bench", "{empty}/none.json"], "none.json is no file of pmae bench"),
        (["{run}", "--out", "{run}/summary.json"], "is a file; name a folder"),
        (["{run}", "--format", "html"], "'html' is not one of"),
    ],
)
def test_a_mistake_is_exit_two_one_line_and_nothing_written(
    arguments: list[str], message: str, runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [word.format(run=runs[0], empty=tmp_path) for word in arguments]
    assert main(["compare", *words, *([] if "--out" in words else ["--out", str(out)])]) == 2
    (output,) = capsys.readouterr().err.splitlines()
    assert message in output
    assert not out.exists()
