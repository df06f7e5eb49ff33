"""`pmae bench`: groups of layers, tables, the file, mistakes."""

import json
from pathlib import Path

import pytest

from conftest import DEBUG
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
    assert set(half["parts"]) == {"generator", "backward", "optimizers", "term mse", "rest"}
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
