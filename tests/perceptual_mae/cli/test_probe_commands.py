"""`pmae probe` and `pmae knn`: what a person types, and what comes of mistakes."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from conftest import DEBUG
from perceptual_mae.cli import main

PRETRAIN = ["pretrain", DEBUG, "mse", "training.epochs=1", "evaluation.limit=4"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*PRETRAIN, "--out", str(path)]) == 0
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_probe_writes_its_scores_and_prints_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(run), "--baselines"]) == 0
    report = json.loads((run / "evaluation" / "probe_cached.json").read_text())
    assert report["seeds"] == [0, 1, 2]
    assert list(report["scores"]) == ["encoder", "random encoder", "raw pixels"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("run, step 4: encoder ")
    assert "none missing; shapes, 96 train and 9 test images of 8 classes, 32x32" in lines[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:7]]
    assert cells[0] == ["top-1, %", "class token", "mean pool", "pixels"]
    assert [row[0] for row in cells[2:]] == ["encoder", "random encoder", "raw pixels"]
    assert lines[-1] == f"written to {run / 'evaluation' / 'probe_cached.json'}"


def test_neighbours_write_their_scores(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["knn", str(run), "--neighbours", "5,10,200"]) == 0
    report = json.loads((run / "evaluation" / "knn.json").read_text())
    assert list(report["scores"]["encoder"]["mean"]) == ["5", "10"]  # there are 96 images
    assert "k = 10" in capsys.readouterr().out


@pytest.mark.slow
def test_a_layer_map_comes_with_its_picture(run: Path) -> None:
    assert main(["probe", str(run), "--layers", "--seeds", "4"]) == 0
    assert json.loads((run / "evaluation" / "probe_layers.json").read_text())["seeds"] == [4]
    with Image.open(run / "evaluation" / "probe_layers.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("protocol", ["mae", "paper"])
def test_published_protocols_run(protocol: str, run: Path) -> None:
    assert main(["probe", str(run), "--protocol", protocol, "--epochs", "1"]) == 0
    report = json.loads((run / "evaluation" / f"probe_{protocol}.json").read_text())
    assert (report["seeds"], report["epochs"], report["batch_size"]) == ([0], 1, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "head"),
    [(["--head", "mlp"], "mlp"), (["--protocol", "kth"], "mlp"), (["--head", "dense", "--protocol", "kth"], "dense"),
     (["--protocol", "kth", "--head", "linear"], "linear")],
)  # fmt: skip
def test_heads_are_trained_by_the_kth_protocol_and_reported_in_both_readings(
    words: list[str], head: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", str(run), *words, "--epochs", "1", "--baselines"]) == 0
    report = json.loads((run / "evaluation" / f"probe_kth_{head}.json").read_text())
    assert (report["protocol"], report["head"], report["seeds"], report["epochs"]) == ("kth", head, [0], 1)
    assert list(report["scores"]) == ["encoder", "random encoder", "raw pixels"]
    printed = capsys.readouterr().out
    assert printed.count(": one-hot agreement *") == printed.count(": top-1 accuracy") == 3
    assert "no accuracy" in printed


def test_the_linear_head_is_the_probe_as_it_was(run: Path) -> None:
    assert main(["probe", str(run), "--head", "linear", "--seeds", "0"]) == 0
    assert json.loads((run / "evaluation" / "probe_cached.json").read_text())["optimizer"] == "lbfgs"


@pytest.mark.slow
def test_other_data_splits_and_limits_go_to_files_of_their_own(run: Path, tmp_path: Path) -> None:
    quick = ["--seeds", "0"]
    assert main(["probe", str(run), *quick, "--limit", "50", "--split", "val", "--no-ema"]) == 0
    assert main(["probe", str(run), *quick, "--optimizer", "sgd", "--epochs", "2"]) == 0
    assert main(["probe", str(run), *quick, "--data", "quickstart", "data.num_images=40"]) == 0
    assert main(["probe", str(run), *quick, "--out", str(tmp_path / "mine.json")]) == 0
    names = {path.name for path in (run / "evaluation").iterdir()}
    assert names == {"probe_cached_val_50_no_ema.json", "probe_cached_sgd.json", "probe_cached_quickstart.json"}
    assert json.loads((tmp_path / "mine.json").read_text())["train_images"] == 96
    assert json.loads((run / "evaluation" / "probe_cached_quickstart.json").read_text())["train_images"] == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe", "{run}", "--ema"], "holds no averaged weights"),
        (["probe", "{run}", "--data", "cifar11"], "did you mean 'cifar10'?"),
        (["probe", "{run}", "--data", "{photos}"], "carry no labels; name a labelled set: --data"),
        (["knn", "{run}", "--data", "{photos}"], "carry no labels; name a labelled set: --data"),
        (["probe", "{run}", "training.epochs=3"], "only keys of the data"),
        (["probe", "{run}", "--seeds", "0,a"], "--seeds is '0,a'"),
        (["probe", "{run}", "--seeds", "1,1"], "--seeds is '1,1'"),
        (["probe", "{run}", "--protocol", "mea"], "'mea' is not one of"),
        (["probe", "{run}", "--protocol", "mae", "--optimizer", "sgd"], "has its own optimiser"),
        (["probe", "{run}", "--protocol", "mae", "--layers"], "--layers probes cached features"),
        (["probe", "{run}", "--protocol", "mae", "--head", "mlp"], "--head mlp is trained by --protocol kth alone"),
        (["probe", "{run}", "--head", "dense", "--layers"], "leave out --protocol kth and --head"),
        (["probe", "{run}", "--head", "dense", "--optimizer", "sgd"], "has its own optimiser"),
        (["probe", "{run}", "--layers", "--baselines"], "leave out --baselines"),
        (["probe", "{run}", "--epochs", "3"], "--epochs and --batch-size need --optimizer"),
        (["probe", "{run}", "--limit", "2"], "2 training images are too few for a probe"),
        (["probe", "{run}", "--out", "{photos}"], "is no file that ends in .json"),
        (["probe", "{photos}"], "is not a run folder"),
        (["probe", "no/such/run"], "no/such/run: does not exist"),
        (["knn", "no/such/run"], "no/such/run: does not exist"),
        (["knn", "{run}", "--limit", "5"], "hold no 10 neighbours"),
        (["knn", "{run}", "--neighbours", "0"], "--neighbours is '0'"),
    ],
)
def test_a_mistake_is_exit_two_one_line_and_nothing_written(
    arguments: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(25):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(photos / f"{number}.png")
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main([argument.format(run=run, photos=photos) for argument in arguments]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len([line for line in printed if line.startswith("pmae: ")]) == 1, printed
    assert message in printed[-1]
    assert sorted(tmp_path.rglob("*")) == before
