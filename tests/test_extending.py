"""The parts that docs/extending.md shows are whole: a tiny run is trained with each, resumed, and scored."""

import json
import re
import sys
from pathlib import Path

import pytest

from conftest import DEBUG
from perceptual_mae import Run
from perceptual_mae.cli import main
from test_docs import ROOT, blocks

PAGE = "docs/extending.md"
SHORT = ("training.epochs=1", "training.epoch_images=16", "evaluation.limit=4", "evaluation.every=0")
NO_SHAPES = ("data.size=null", "data.num_images=null")
PARTS = {
    "data set": ("mse", "data={kind: my_images:Stripes, count: 32}", *NO_SHAPES),
    "masking": ("mse", "masking.kind=my_masks:columns"),
    "discriminator": (
        *("ls_gan_p", "discriminator.kind=my_discriminator:Patches", "discriminator.width=8"),
        "augment={kind: my_augmentation:Mirror, probability: 0.3}",
    ),
    "loss network": ("mse", "losses.style={weight: 0.1, network: {kind: my_network:Projections, width: 4}}"),
    "loss term": ("mse", "charbonnier.yaml"),
}


@pytest.fixture
def shown_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder holds the files that the page shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for block in [*blocks(PAGE, "python"), *blocks(PAGE, "yaml")]:
        name = re.match(r"# (\S+)", block)
        assert name
        monkeypatch.delitem(sys.modules, Path(name[1]).stem, raising=False)
        Path(name[1]).write_text(block)


def records() -> list[dict[str, object]]:
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_run_is_trained_and_gone_on_with_a_part_that_the_page_shows(part: str, shown_files: None) -> None:
    command = ["pretrain", DEBUG, *PARTS[part], *SHORT, "--out", "run"]
    assert main(command) == 0
    assert main([*command, "training.epochs=2"]) == 0
    assert Run("run").summary()["steps"] == 4
    kinds = {word for word in re.findall(r"\w+:\w+", " ".join(PARTS[part])) if word.startswith("my_")}
    assert all(kind in Path("run/config.yaml").read_text() for kind in kinds)
    if part == "loss term":
        weighted = [record["weighted"]["smooth"] for record in records() if "weighted" in record]
        assert weighted[0] == 0 or weighted[0] < weighted[-1]
        assert all(record["raw"]["smooth"] > 0 for record in records() if "smooth" in record.get("raw", {}))


def test_a_feature_network_of_the_page_scores_a_run(shown_files: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", DEBUG, "mse", *SHORT, "--out", "run"]) == 0
    features = ["--features", "my_features:means,cells=3"]
    assert main(["evaluate", "run", "--metrics", "kid", *features, "--out", "scores.json"]) == 0
    report = json.loads(Path("scores.json").read_text())
    assert report["feature_networks"]["means"]["dim"] == 27
    assert "kid[means]" in report["scores"]["raw"]
    capsys.readouterr()
    for text, reported in (
        ("my_features:means,cells=many", "cells=many should be another value"),
        ("my_features:means,cels=3", "did you mean 'cells'"),
        ("my_features:Means", "must be a class or function that takes (words, *, options)"),
        ("my_features:absent", "cannot import feature network"),
        ("torchvison:resnet50:a.pth", "did you mean 'torchvision'"),
    ):
        assert main(["evaluate", "run", "--metrics", "kid", "--features", text]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert reported in line


def test_the_page_says_every_field_that_a_term_may_read() -> None:
    from perceptual_mae.losses import FIELDS

    table = (ROOT / PAGE).read_text().split("## A loss term")[1].split("Nothing that")[0]
    assert set(
        re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    ) == set(FIELDS)
