"""`pmae bench`: groups of layers, tables, the file, mistakes."""

import json
import math
from pathlib import Path

import pytest

from conftest import DEBUG
from perceptual_mae.benchmark import loader
from perceptual_mae.cli import main
from perceptual_mae.cli.bench import run
from perceptual_mae.cli.options import join_layers_of_against, split_layers

QUICK = ["--rounds", "1"]


@pytest.mark.parametrize(
    ("typed", "joined"),
    [
        (["cifar10", "mse"], ["cifar10", "mse"]),
        (["a", "--against", "b", "c", "k=1"], ["a", "--against", "b c k=1"]),
        (["a", "--against", "b", "--rounds", "3", "c"], ["a", "--against", "b", "--rounds", "3", "c"]),
        (["--against", "b", "c", "--against", "d", "-h"], ["--against", "b c", "--against", "d", "-h"]),
        (["a", "--against"], ["a", "--against"]),
        (["a", "--against", "my runs/b.yaml", "c"], ["a", "--against", "'my runs/b.yaml' c"]),
    ],
)
def test_an_option_takes_all_words_up_to_the_next_one(typed: list[str], joined: list[str]) -> None:
    assert join_layers_of_against(typed) == joined


def test_layers_that_were_joined_come_apart_into_the_words_that_were_typed() -> None:
    words = ["my runs/b.yaml", "losses.mse={weight: 1.0, when: {every: 3}}", "it's"]
    assert split_layers(join_layers_of_against(["--against", *words])[1]) == words


@pytest.mark.slow
def test_tables_and_file_say_the_same_of_configurations_with_overrides_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    arguments = ["bench", DEBUG, "mse", "masking.ratio=0.5", "--against", DEBUG, "mse", "training.precision=bf16"]
    assert main([*arguments, *QUICK, "--batch-size", "4", "--json", str(file)]) == 0
    printed = json.loads(file.read_text())
    half, quarter = printed["configurations"]
    assert half["name"] == f"{DEBUG} mse masking.ratio=0.5"
    assert (half["batch_size"], quarter["batch_size"], half["image_size"]) == (4, 4, [32, 32])
    assert (half["precision"], quarter["precision"]) == ("no", "bf16")
    assert half["flops"] > quarter["flops"]  # more visible patches
    assert [step["kind"] for step in half["steps"]] == ["odd", "even"]
    assert set(half["parts"]) == {"generator", "backward", "backward generator", "optimizers", "term mse", "rest"}
    assert (
        set(half)
        == set(quarter)
        == {
            *("name", "image_size", "batch_size", "precision", "augment_p", "ratio", "milliseconds", "rounds"),
            *("flops", "generator_passes", "discriminator_passes", "peak_memory", "parts", "steps"),
        }
    )
    captured = capsys.readouterr()
    for word in ("process CPU time", "1 thread", "ratio to 2", "quartiles", "term mse", "even", half["name"]):
        assert word in captured.out
    assert f"{half['ratio']['median']:.3f}" in captured.out


def test_the_file_is_there_even_where_the_reader_of_the_tables_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("perceptual_mae.cli.bench.print_tables", closed)
    with pytest.raises(BrokenPipeError):
        run([[DEBUG, "mse"]], rounds=1, warmup=0, threads=1, batch_size=4, file=tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text())["configurations"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([DEBUG, "mse", "--against", DEBUG, "msee"], "unknown layer 'msee'"),
        ([DEBUG, "mse", "--against", DEBUG, "mse", "training.epoch=1"], "training.epoch: unknown key"),
        (["--against", DEBUG, "mse"], "Missing argument"),
        ([DEBUG, "mse", "--against"], "--against"),
        ([DEBUG, "mse", "--rounds", "0"], "--rounds"),
        ([DEBUG, "mse", "training.accumulation=2", "--batch-size", "3"], "cannot be divided into 2 equal"),
        ([DEBUG, "mse", "--json", "nowhere/bench.json"], "nowhere/bench.json: cannot be written"),
        ([DEBUG, "mse", "--json", "."], "cannot be written"),
    ],
)
def test_a_mistake_is_exit_two_and_one_line_before_anything_is_measured(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pmae: ")
    assert message in line
    assert not list(tmp_path.iterdir())


def test_a_loader_is_measured_by_workers_and_says_how_many_a_training_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "SECONDS", 0.05)
    monkeypatch.setattr(loader.os, "cpu_count", lambda: 2)
    file = tmp_path / "loader.json"
    shapes = ["data.num_images=64", "data.workers=8", "training.batch_size=4"]
    arguments = ["bench", DEBUG, "mse", *shapes, "--loader", "--images-per-second", "1e7", "--rounds", "3"]
    assert main([*arguments, "--json", str(file)]) == 0
    (tree,) = json.loads(file.read_text())["loaders"]
    assert (tree["kind"], tree["num_images"], tree["batch_size"], tree["cores"]) == ("shapes", 64, 4, 2)
    assert [row["workers"] for row in tree["workers"]] == [1, 2]
    for row in tree["workers"]:
        assert len(row["rounds"]) == 3
        assert row["images_per_second"]["median"] == sorted(row["rounds"])[1] > 0
    both = tree["workers"][1]["images_per_second"]["median"]
    assert tree["workers_needed"] == math.ceil(1e7 / (both / 2)) > 2
    printed = capsys.readouterr().out
    assert f"a training of 10,000,000 images/s needs data.workers={tree['workers_needed']}" in printed
    assert "more than this machine's 2 cores" in printed
    assert "mean step" not in printed


def test_workers_count_as_they_did_among_the_most_that_were_measured() -> None:
    rates = loader.LoaderRates("", "", 1, 1, {1: [90.0, 100.0, 300.0], 4: [310.0, 320.0, 330.0]})
    assert (rates.rate(1).median, rates.needed(320), rates.needed(321), rates.needed(10)) == (100, 4, 5, 1)


@pytest.mark.slow
def test_a_loader_is_held_against_the_steps_that_were_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SECONDS", 0.05)
    file = tmp_path / "bench.json"
    assert main(["bench", DEBUG, "mse", "data.workers=1", "--loader", *QUICK, "--json", str(file)]) == 0
    results = json.loads(file.read_text())
    (step,), (tree,) = results["configurations"], results["loaders"]
    assert tree["step_images_per_second"] == pytest.approx(1e3 * step["batch_size"] / step["milliseconds"]["median"])
    assert [row["workers"] for row in tree["workers"]] == [1]


def test_a_rate_without_a_loader_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", DEBUG, "mse", "--images-per-second", "100"]) == 2
    assert "add --loader" in capsys.readouterr().err
