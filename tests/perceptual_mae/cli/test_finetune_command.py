"""`pmae finetune`: what a person types, and what comes of mistakes."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from conftest import DEBUG
from perceptual_mae.cli import main
from perceptual_mae.evaluation.finetuning.classifier import open_classifier

PRETRAIN = ["pretrain", DEBUG, "mse", "training.epochs=1", "evaluation.limit=4"]
QUICK = ["--recipe", "small", "--epochs", "1", "--batch-size", "16"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*PRETRAIN, "--out", str(path)]) == 0
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.slow
def test_accuracies_are_written_and_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", str(run), *QUICK, "--seeds", "0,1", "--set", "mixup=0.2"]) == 0
    written = run / "evaluation" / "finetune_small.json"
    report = json.loads(written.read_text())
    assert (report["kind"], report["seeds"], report["recipe"]["name"]) == ("finetune", [0, 1], "small")
    assert (report["recipe"]["epochs"], report["recipe"]["batch_size"], report["recipe"]["mixup"]) == (1, 16, 0.2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("run, step 4: encoder ")
    assert "none missing; shapes, 96 train and 9 test images of 8 classes, 32x32" in lines[0]
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "after 1 epoch",
        "top-1, %",
        "top-5, %",
        "train loss",
    ]
    assert lines[-2] == f"written to {written}"
    assert lines[-1].endswith("and --from-scratch, the baseline")


@pytest.mark.slow
def test_baselines_fractions_and_networks_go_to_places_of_their_own(run: Path, tmp_path: Path) -> None:
    assert main(["finetune", str(run), *QUICK, "--from-scratch", "--lr", "1e-3"]) == 0
    assert main(["finetune", str(run), *QUICK, "--fraction", "0.2", "--save", str(tmp_path / "kept")]) == 0
    assert main(["finetune", str(run), *QUICK, "--limit", "50", "--no-ema", "--out", str(tmp_path / "mine.json")]) == 0
    names = {path.name for path in (run / "evaluation").iterdir()}
    assert names == {"finetune_small_scratch.json", "finetune_small_fraction_0.2.json"}
    scratch = json.loads((run / "evaluation" / "finetune_small_scratch.json").read_text())
    assert (scratch["from_scratch"], scratch["recipe"]["layer_decay"], scratch["recipe"]["lr"]) == (True, 1.0, 1e-3)
    assert json.loads((tmp_path / "mine.json").read_text())["train_images"] == 50
    assert len(open_classifier(tmp_path / "kept").classes) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "mea"], "'mea' is not one of"),
        (["--set", "lrr=1"], "--set lrr: unknown key"),
        (["--set", "layer_decay=2"], "--set layer_decay: found 2, must be a number > 0 and <= 1"),
        (["--lr", "-1"], "--set lr: found -1.0, must be a number > 0"),
        (["--epochs", "0"], "Invalid value for '--epochs'"),
        (["--batch-size", "1024"], "96 training images do not fill one batch of 1024"),
        (["--fraction", "0"], "--fraction is 0"),
        (["--fraction", "1.5"], "--fraction is 1.5"),
        (["--fraction", "0.5", "--limit", "50"], "leave one out"),
        (["--from-scratch", "--no-ema"], "takes none of the run's weights"),
        (["--ema"], "holds no averaged weights"),
        (["--seeds", "0,0"], "--seeds is '0,0'"),
        (["--save", "{run}"], "is in use; name a new folder"),
        (["--out", "{run}"], "is no file that ends in .json"),
        (["training.epochs=3"], "only keys of the data"),
        (["--data", "cifar11"], "did you mean 'cifar10'?"),
    ],
)
def test_a_mistake_is_exit_two_one_line_and_nothing_written(
    arguments: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(["finetune", str(run), "--recipe", "small", *[argument.format(run=run) for argument in arguments]]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len([line for line in printed if line.startswith("pmae: ")]) == 1, printed
    assert message in printed[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_an_encoder_with_a_tensor_missing_is_not_fine_tuned(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["generator"]["depth"] = 3  # one block more than was saved
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["finetune", str(run), *QUICK]) == 2
    assert "encoder.blocks.2" in capsys.readouterr().err
    assert not (run / "evaluation").exists()
