"""Weights that are not finite: every command that would score or draw them refuses, and writes nothing."""

import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image

from conftest import DEBUG
from perceptual_mae import MaskedAutoencoder, Run
from perceptual_mae.cli import main

TRAIN = ["pretrain", DEBUG, "mse", "training.epochs=1", "training.epoch_images=8", "evaluation.limit=2"]
DATA = ["--limit", "16", "--test-limit", "4"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*TRAIN, "--out", str(path)]) == 0
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    Image.new("RGB", (40, 40), "teal").save(tmp_path / "photo.png")
    return Path(shutil.copytree(finished, tmp_path / "run"))


def damaged(self: Run, *, ema: bool | None = None) -> MaskedAutoencoder:
    generator: MaskedAutoencoder = load(self, ema=ema)
    with torch.no_grad():
        for block in generator.encoder.blocks:
            block.attn.qkv.weight.fill_(torch.nan)
    return generator


load = Run.generator


@pytest.mark.parametrize(
    "command",
    [
        ["knn", "RUN", *DATA],
        ["probe", "RUN", *DATA],
        ["probe", "RUN", "--layers", *DATA],
        ["probe", "RUN", "--optimizer", "sgd", "--epochs", "1", "--batch-size", "4", *DATA],
        ["probe", "RUN", "--protocol", "mae", "--epochs", "1", "--batch-size", "4", *DATA],
        ["probe", "RUN", "--protocol", "kth", "--epochs", "1", "--batch-size", "4", *DATA],
        ["finetune", "RUN", "--recipe", "small", "--epochs", "1", "--batch-size", "4", *DATA],
        ["evaluate", "RUN", "--limit", "2"],
        ["visualize", "RUN", "--count", "2"],
        ["visualize", "RUN", "photo.png"],
        ["visualize", "RUN", "--attention", "--count", "2"],
        ["demo", "RUN", "--image", "photo.png", "--share-folder", "new"],
        ["embed", "RUN", "photo.png", "--out", "new/features.npz"],
        ["embed", "RUN", "photo.png", "--layer", "1", "--out", "new/features.npz"],
    ],
    ids=lambda words: "_".join(word.strip("-") for word in words if word != "RUN")[:40],
)
def test_nothing_is_scored_or_drawn_of_weights_that_are_not_finite(
    command: list[str], run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    before = sorted(run.parent.rglob("*"))
    with mock.patch.object(Run, "generator", damaged):
        assert main([str(run) if word == "RUN" else word for word in command]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pmae: ")]
    assert "not finite" in line
    assert "lower" in line or "score an earlier checkpoint" in line
    assert sorted(run.parent.rglob("*")) == before


def test_an_encoder_refuses_bytes_and_says_what_it_expects(run: Path) -> None:
    generator = Run(run).generator()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"float images in \[0, 1\], got torch.uint8; divide bytes by 255"):
        generator.encoder(images)
    with pytest.raises(ValueError, match="float images in"):
        generator.encoder.class_attention(images)
    with pytest.raises(ValueError, match="float images"):
        generator(images, torch.zeros(2, 16, dtype=torch.bool))
