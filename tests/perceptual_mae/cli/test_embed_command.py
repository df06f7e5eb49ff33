"""`pmae embed`: features in a file are those of the encoder called by hand, for every image that can be read."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import DEBUG
from perceptual_mae import Run
from perceptual_mae.cli import main
from perceptual_mae.config.build import build_evaluation_transform
from perceptual_mae.data.decoding import read_image
from perceptual_mae.evaluation.representation import embedding
from perceptual_mae.evaluation.representation.features import fingerprint
from processes import run_two_processes

TRAIN = ["pretrain", DEBUG, "ls_gan_p", "training.epochs=1", "training.epoch_images=16", "training.ema_kimg=0.01"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*TRAIN, "evaluation.limit=2", "training.precision=bf16", "--out", str(path)]) == 0
    return path


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a run and seven photos of several sizes, one of which cannot be read."""
    shutil.copytree(finished, tmp_path / "run")
    rng = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (32 + 4 * number, 40, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "bad.jpg").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def by_hand(names: list[str], *, ema: bool | None = None, layer: int | None = None) -> torch.Tensor:
    """The tokens (N, 1+L, D) of photos, one at a time."""
    run = Run("run")
    encoder, prepare = run.generator(ema=ema).encoder, build_evaluation_transform(run.config.data)
    tokens = []
    for name in names:
        image = prepare(read_image(name))[None].float() / 255
        with torch.no_grad():
            last, tapped = encoder.encode(image, taps=() if layer is None else (layer,))
        tokens.append(last if layer is None else torch.nn.functional.layer_norm(tapped[layer], (32,), eps=1e-6))
    return torch.cat(tokens)


def load(path: str) -> dict[str, Any]:
    with np.load(path) as file:  # pickles are refused
        return dict(file)


NAMES = ["a/0.png", "a/2.png", "a/4.png", "b/1.png", "b/3.png", "b/5.png"]


def test_a_folder_s_features_are_those_of_the_encoder_called_by_hand(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", "run", "photos", "--out", "features.npz"]) == 0
    printed, arrays = capsys.readouterr().out.splitlines(), load("features.npz")
    assert list(arrays) == ["names", "class_token", "mean_pool", "metadata"]
    assert arrays["names"].tolist() == NAMES
    tokens = by_hand([f"photos/{name}" for name in NAMES])
    assert arrays["class_token"].dtype == np.float32
    np.testing.assert_allclose(arrays["class_token"], tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(arrays["mean_pool"], tokens[:, 1:].mean(1), atol=1e-5)
    metadata, run = json.loads(arrays["metadata"].item()), Run("run")
    assert metadata["encoder_sha256"] == fingerprint(run.generator().encoder)
    assert (metadata["step"], metadata["ema"], metadata["unreadable"]) == (2, True, ["bad.jpg"])
    assert metadata["transform"]["image_size"] == [32, 32]
    assert printed[0].startswith("run, step 2 (averaged weights): encoder ")
    assert printed[0].endswith("tokens after the final norm; 6 images, 32x32")
    assert printed[1:] == [
        "1 could not be read and were left out: bad.jpg",
        "written to features.npz: names, class_token (6, 32), mean_pool (6, 32)",
    ]


def test_files_patches_a_block_plain_weights_and_halves(here: Path) -> None:
    files = ["photos/b/3.png", "photos/a/0.png"]
    words = ["--tokens", "patches,class", "--layer", "1", "--no-ema", "--half"]
    assert main(["embed", "run", *files, *words, "--out", "new/features.npz"]) == 0
    arrays = load("new/features.npz")
    assert list(arrays) == ["names", "class_token", "patches", "metadata"]
    assert arrays["names"].tolist() == files
    assert (arrays["patches"].shape, arrays["patches"].dtype) == ((2, 16, 32), np.float16)
    tokens = by_hand(files, ema=False, layer=1)
    np.testing.assert_allclose(arrays["patches"], tokens[:, 1:], atol=5e-3)
    np.testing.assert_allclose(arrays["class_token"], tokens[:, 0], atol=5e-3)
    assert not np.allclose(arrays["class_token"], by_hand(files, ema=True, layer=1)[:, 0], atol=5e-3)
    assert json.loads(arrays["metadata"].item())["layer"] == 1


def test_batches_change_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = embedding.extract_features
    assert main(["embed", "run", "photos", "--tokens", "patches", "--out", "one.npz"]) == 0
    monkeypatch.setattr(embedding, "extract_features", lambda *given, **named: whole(*given, **named, batch_size=2))
    assert main(["embed", "run", "photos", "--tokens", "patches", "--out", "two.npz"]) == 0
    np.testing.assert_allclose(load("one.npz")["patches"], load("two.npz")["patches"], atol=1e-5)


def test_names_that_are_no_text_are_spelled_out(here: Path) -> None:
    strange = b"photos/a/caf\xe9.png".decode(errors="surrogateescape")
    try:
        shutil.copy("photos/a/0.png", strange)
    except OSError:
        pytest.skip("the file system takes no such name")
    assert main(["embed", "run", "photos", "--out", "features.npz"]) == 0
    assert r"a/caf\xe9.png" in load("features.npz")["names"].tolist()


def test_parquet_needs_pyarrow_and_says_so_before_anything_is_read(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mock.patch.dict(sys.modules, {"pyarrow": None}):
        assert main(["embed", "run", "photos", "--out", "features.parquet"]) == 2
    assert capsys.readouterr().err == (
        "pmae: --out: Parquet is written by pyarrow: pip install 'perceptual-mae[parquet]', or name a file that ends "
        "in .npz\n"
    )
    assert not Path("features.parquet").exists()


def test_parquet_holds_the_same_as_npz(here: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    words = ["embed", "run", "photos", "--tokens", "class,mean,patches", "--out"]
    assert main([*words, "features.parquet"]) == 0
    assert main([*words, "features.npz"]) == 0
    table, arrays = parquet.read_table("features.parquet"), load("features.npz")
    assert table.column_names == ["names", "class_token", "mean_pool", "patches"]
    assert table["names"].to_pylist() == arrays["names"].tolist()
    for name in ("class_token", "mean_pool", "patches"):
        assert np.array_equal(np.array(table[name].to_pylist(), dtype=np.float32), arrays[name])
    assert table.schema.metadata[b"perceptual_mae"].decode() == arrays["metadata"].item()


def test_a_feature_beyond_float16_is_refused_and_an_older_file_stays(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("features.npz").write_text("older")
    pool = embedding.pool
    monkeypatch.setattr(embedding, "pool", lambda tokens: pool(1e6 * tokens))
    assert main(["embed", "run", "photos", "--half", "--out", "features.npz"]) == 2
    assert "--half: class_token has" in capsys.readouterr().err
    assert Path("features.npz").read_text() == "older"
    assert main(["embed", "run", "photos", "--out", "features.npz"]) == 0
    assert load("features.npz")["class_token"].max() > 65504


def test_a_file_is_written_whole_or_not_at_all(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    before = sorted(here.rglob("*"))
    monkeypatch.setattr(embedding.np, "savez", half)
    assert main(["embed", "run", "photos", "--out", "features.npz"]) == 2
    assert sorted(here.rglob("*")) == before


def test_features_that_have_no_room_are_refused_before_an_image_is_read(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding.psutil, "virtual_memory", lambda: mock.Mock(available=7 * 32 * 16 * 4 - 1))
    assert main(["embed", "run", "photos", "--tokens", "patches", "--out", "features.npz"]) == 2
    assert "leave patches out of --tokens" in capsys.readouterr().err
    assert main(["embed", "run", "photos", "--out", "features.npz"]) == 0


@pytest.mark.slow
def test_two_processes_write_what_one_writes(here: Path) -> None:
    words = ["embed", "run", "photos", "--tokens", "class,mean,patches", "--out"]
    assert main([*words, "one.npz"]) == 0
    printed = run_two_processes("-m", "perceptual_mae.cli", *words, "both.npz").stdout
    assert printed.count("written to both.npz") == 1
    one, both = load("one.npz"), load("both.npz")
    assert one.keys() == both.keys()
    for name, array in one.items():
        if name in ("names", "metadata"):
            assert both[name].tolist() == array.tolist()
        else:
            np.testing.assert_allclose(both[name], array, atol=1e-5)
