"""A run's representation from end to end, on digits at debug size."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import debug_config
from perceptual_mae import Run, pretrain
from perceptual_mae.cli.representation_tables import knn_table, probe_table, with_spectrum
from perceptual_mae.evaluation.labelled_data import LabelledData, open_labelled
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.evaluation.representation import evaluate
from perceptual_mae.evaluation.representation.evaluate import knn_run, probe_run, summarise
from perceptual_mae.evaluation.representation.features import encoder_features, extract, fingerprint
from perceptual_mae.evaluation.representation.spectrum import alpha_req, rankme
from perceptual_mae.progress import no_progress
from perceptual_mae.visualization.layer_map import draw_layer_map
from processes import run_two_processes

DIGITS = ["mse", "data={kind: digits, image_size: 32}", "data.num_images=null", "training.ema_kimg=0.1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "digits"
    torch.set_num_threads(1)
    pretrain(debug_config(*DIGITS, "training.epoch_images=320", "optimizer.lr=3e-3"), path, quiet=True)
    return Run(path)


@pytest.fixture(scope="module")
def data(run: Run) -> LabelledData:
    return open_labelled(run.config, limit=150, test_limit=60)


@pytest.fixture(scope="module")
def reported() -> set[str]:
    return set()


@pytest.fixture(scope="module")
def report(run: Run, data: LabelledData, reported: set[str]) -> dict[str, Any]:
    def on_progress(what: str, done: int, total: int) -> None:
        reported.add(what)

    return probe_run(run, data, make_accelerator(run.config), seeds=(0, 1), baselines=True, on_progress=on_progress)


@pytest.mark.slow
def test_trained_encoder_random_encoder_and_pixels_score_differently(report: dict[str, Any]) -> None:
    scores = report["scores"]
    assert list(scores) == ["encoder", "random encoder", "raw pixels"]
    found = [scores["encoder"]["mean"], scores["random encoder"]["mean"], scores["raw pixels"]["pixels"]]
    assert len({tuple(found["by_seed"]) for found in found}) == 3
    assert scores["encoder"]["class"] != scores["random encoder"]["class"]
    assert all(found["accuracy"] > 0.2 for found in found)  # a tenth is chance


def test_a_report_says_what_it_stands_on(run: Run, report: dict[str, Any]) -> None:
    assert report["encoder_sha256"] == fingerprint(run.generator().encoder)  # as before the probe
    assert (report["step"], report["ema"], report["precision"]) == (run.step, True, "no")
    assert (report["data"], report["split"], report["classes"]) == ("digits", "test", 10)
    assert (report["train_images"], report["test_images"]) == (150, 60)
    assert (report["limit"], report["test_limit"]) == (150, 60)
    assert report["transform"] == {"image_size": [32, 32], "resize": None, "crop": "center"}
    assert (report["protocol"], report["optimizer"], report["seeds"]) == ("cached", "lbfgs", [0, 1])
    for found in report["scores"]["encoder"].values():
        assert len(found["by_seed"]) == len(found["chosen"]) == len(found["held_out_accuracy"]) == 2
        assert found["accuracy"] == pytest.approx(sum(found["by_seed"]) / 2, abs=1e-5)


def test_the_spectrum_is_of_the_features_that_the_probe_is_fitted_on(
    run: Run, data: LabelledData, report: dict[str, Any]
) -> None:
    assert {name: list(found) for name, found in report["spectrum"].items()} == {
        "encoder": ["class", "mean"],
        "random encoder": ["class", "mean"],
        "raw pixels": ["pixels"],
    }
    encoder = run.generator().requires_grad_(False).encoder
    train = extract(encoder_features(encoder), data.train, data, make_accelerator(run.config), "", no_progress)
    for name, found in report["spectrum"]["encoder"].items():
        assert found["rankme"] == pytest.approx(rankme(train.named[name]), abs=1e-3)
        assert found["alpha_req"] == pytest.approx(alpha_req(train.named[name]), abs=1e-3)


def test_progress_covers_extraction_and_fitting_of_everything(report: dict[str, Any], reported: set[str]) -> None:
    assert reported == {f"{name}, {what}" for name in report["scores"] for what in ("train", "test", "fitting")}


@pytest.mark.slow
def test_the_same_probe_twice_gives_the_same_scores(run: Run, data: LabelledData, report: dict[str, Any]) -> None:
    again = probe_run(run, data, make_accelerator(run.config), seeds=(0, 1))
    assert again["scores"]["encoder"] == report["scores"]["encoder"]


def test_averaged_weights_are_left_out_when_reported(run: Run, data: LabelledData, report: dict[str, Any]) -> None:
    plain = knn_run(run, data, make_accelerator(run.config), ema=False)
    assert plain["ema"] is False
    assert plain["encoder_sha256"] == fingerprint(run.generator(ema=False).encoder) != report["encoder_sha256"]


@pytest.mark.parametrize("protocol", ["mae", "paper"])
def test_published_protocols_report_both_poolings(protocol: str, run: Run, data: LabelledData) -> None:
    report = probe_run(run, data, make_accelerator(run.config), protocol=protocol, seeds=(0,), epochs=1, batch_size=50)
    assert (report["epochs"], report["batch_size"]) == (1, 50)
    assert report["augmentation"]["crop_scale"] == [0.08, 1.0]
    assert list(report["scores"]["encoder"]) == ["class", "mean"]
    assert report["scores"]["encoder"]["mean"]["deviation"] is None


@pytest.fixture(scope="module")
def by_kth(run: Run, data: LabelledData) -> dict[str, Any]:
    return probe_run(run, data, make_accelerator(run.config), protocol="kth", head="mlp", seeds=(0, 1), epochs=4)


def test_a_trained_head_is_reported_on_train_and_test_in_both_readings(by_kth: dict[str, Any]) -> None:
    assert (by_kth["head"], by_kth["epochs"], by_kth["batch_size"], by_kth["augmentation"]) == ("mlp", 4, 64, None)
    assert by_kth["one_hot_agreement"].startswith("no accuracy")
    assert list(by_kth["scores"]["encoder"]) == ["class", "mean"]
    for found in by_kth["scores"]["encoder"].values():
        for part, score in (("test", found), ("train", found["train"])):
            assert len(score["by_seed"]) == 2
            assert found["one_hot_agreement"][part] == pytest.approx(1 - 0.2 * (1 - score["accuracy"]), abs=2e-5)


def test_both_readings_stand_in_the_table_under_names_of_their_own(by_kth: dict[str, Any]) -> None:
    lines = probe_table(by_kth).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:4]]
    assert cells[0] == [
        "mlp head, %",
        *(f"{name}, {part}" for name in ("class token", "mean pool") for part in ("test", "train")),
    ]
    assert [row[0] for row in cells[2:]] == ["encoder: top-1 accuracy", "encoder: one-hot agreement *"]
    found = by_kth["scores"]["encoder"]["class"]
    assert cells[2][1].startswith(f"{100 * found['accuracy']:.2f} ±")
    assert cells[3][2] == f"{100 * found['one_hot_agreement']['train']:.2f}"
    assert lines[-1].startswith("* no accuracy")
    assert lines[-1].endswith("reads 82.00")


def test_the_trained_heads_of_a_run_saw_every_patch_and_left_the_encoder_alone(
    run: Run, data: LabelledData, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = run.generator().requires_grad_(False)
    before, shapes = fingerprint(generator.encoder), set[torch.Size]()
    generator.encoder.blocks[0].register_forward_hook(lambda module, given, out: shapes.add(given[0].shape[1:]))
    monkeypatch.setattr(evaluate, "open_generator", lambda *_: generator)
    probe_run(run, data, make_accelerator(run.config), protocol="kth", head="dense", seeds=(0,), epochs=1)
    assert shapes == {(1 + 16, 32)}  # the class token and every patch
    assert fingerprint(generator.encoder) == before


def test_other_protocols_have_the_linear_head_alone(run: Run, data: LabelledData) -> None:
    with pytest.raises(ValueError, match="trained by the protocol 'kth', not by 'mae'"):
        probe_run(run, data, make_accelerator(run.config), protocol="mae", head="mlp")


@pytest.mark.slow
def test_the_layer_map_has_both_poolings_of_every_block_and_a_picture(
    run: Run, data: LabelledData, report: dict[str, Any], tmp_path: Path
) -> None:
    layers = probe_run(run, data, make_accelerator(run.config), layers=True, seeds=(0,))
    found = layers["scores"]["encoder"]
    assert list(found) == ["class/1", "class/2", "mean/1", "mean/2"]
    last = report["scores"]["encoder"]["mean"]["by_seed"][0]
    assert found["mean/2"]["accuracy"] == pytest.approx(last, abs=0.05)  # three of the sixty images
    draw_layer_map(found, tmp_path / "deeper" / "map.png", title="digits")
    assert (tmp_path / "deeper" / "map.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "deeper").iterdir())) == 1
    lines = probe_table(layers).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["block 1", "block 2"]


def test_neighbours_are_counted_for_both_poolings_and_the_baselines(run: Run, data: LabelledData) -> None:
    report = knn_run(run, data, make_accelerator(run.config), baselines=True)
    scores = report["scores"]
    assert [list(found) for found in scores.values()] == [["class", "mean"], ["class", "mean"], ["pixels"]]
    assert all(list(by_count) == ["10", "20", "100"] for found in scores.values() for by_count in found.values())
    assert scores["raw pixels"]["pixels"]["10"] > 0.7  # digits of one hand look alike
    assert report["temperature"] == 0.07
    assert len(knn_table(report).splitlines()) == 2 + 5
    assert report["spectrum"]["encoder"]["mean"].keys() == {"rankme", "alpha_req"}
    assert with_spectrum(knn_table)(report).count("\n| encoder, mean pool ") == 2


BY_TWO = """
import json
import sys

import torch

from perceptual_mae.evaluation.open_run import open_run
from perceptual_mae.evaluation.representation.evaluate import knn_run, probe_run

opened = open_run(sys.argv[1], limit=150, test_limit=60)
given = (opened.run, opened.data, opened.accelerator)
assert opened.accelerator.num_processes == 2
reports = [probe_run(*given, seeds=(0,)), probe_run(*given, protocol="mae", seeds=(0,), epochs=2), knn_run(*given)]
if opened.is_main_process:
    json.dump(reports, open(sys.argv[2], "w"))
else:
    assert [report["scores"]["encoder"] for report in reports] == [{}, {}, {}]
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_find_what_one_finds(run: Run, data: LabelledData, tmp_path: Path) -> None:
    (tmp_path / "by_two.py").write_text(BY_TWO)
    run_two_processes(tmp_path / "by_two.py", run.path, tmp_path / "found.json")
    both = json.loads((tmp_path / "found.json").read_text())
    accelerator = make_accelerator(run.config)
    one = [
        probe_run(run, data, accelerator, seeds=(0,)),
        probe_run(run, data, accelerator, protocol="mae", seeds=(0,), epochs=2),
        knn_run(run, data, accelerator),
    ]
    assert both == one


def test_a_summary_is_mean_and_sample_std() -> None:
    assert summarise([0.5, 0.6, 0.7]) == {"accuracy": 0.6, "deviation": 0.1, "by_seed": [0.5, 0.6, 0.7]}
    assert summarise([0.25]) == {"accuracy": 0.25, "deviation": None, "by_seed": [0.25]}


def test_tables_paste_as_markdown() -> None:
    found = {"accuracy": 0.5, "deviation": 0.01}
    scores = {"encoder": {"class": found, "mean": {**found, "deviation": None}}, "raw pixels": {"pixels": found}}
    assert probe_table({"protocol": "cached", "scores": scores}).splitlines() == [
        "| top-1, %   | class token  | mean pool | pixels       |",
        "| ---------- | ------------ | --------- | ------------ |",
        "| encoder    | 50.00 ± 1.00 | 50.00     |              |",
        "| raw pixels |              |           | 50.00 ± 1.00 |",
    ]
    neighbours = {"scores": {"encoder": {"mean": {"10": 0.125}}, "raw pixels": {"pixels": {"10": 1.0}}}}
    table = knn_table(neighbours)
    assert with_spectrum(knn_table)(neighbours) == table
    spectrum = {"encoder": {"mean/2": {"rankme": 12.346, "alpha_req": None}}}
    assert with_spectrum(knn_table)(neighbours | {"spectrum": spectrum}).splitlines()[len(table.splitlines()) :] == [
        "",
        "| training features           | RankMe | alpha-ReQ |",
        "| --------------------------- | ------ | --------- |",
        "| encoder, mean pool, block 2 | 12.35  | -         |",
    ]
    assert table.splitlines() == [
        "| top-1, %           | k = 10 |",
        "| ------------------ | ------ |",
        "| encoder, mean pool | 12.50  |",
        "| raw pixels         | 100.00 |",
    ]
