"""A run on shards comes to the weights of a run on a folder of the same images, stopped or not."""

from pathlib import Path

import pytest
import torch

from conftest import DEBUG, debug_config
from perceptual_mae import Run, UserError, pretrain
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.data.shard_writing import write_shards
from perceptual_mae.run.signals import Interrupted
from photographs import photos
from processes import run_two_processes
from test_interruption import Killed, before_step, kill
from test_loop import stop_after, trained


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in `image_folder`, and the same in `shards`."""
    root = tmp_path_factory.mktemp("pair")
    write_shards(photos(root / "image_folder"), root / "shards", megabytes=0.07)
    return root


def config(pair: Path, kind: str, workers: int = 0, *more: str) -> RunConfig:
    keys = f"kind: {kind}, root: {pair / kind}, holdout: 0.2, image_size: 32, workers: {workers}"
    data = f"data={{{keys}, size: null, num_images: null}}"
    return debug_config("mse", data, "training.epoch_images=48", "training.keep_last=9", *more)


@pytest.fixture(scope="module")
def expected(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    path = tmp_path_factory.mktemp("expected") / "run"
    pretrain(config(pair, "image_folder"), path, quiet=True)
    return trained(path)


@pytest.mark.parametrize(
    ("workers", "copies"),
    [(0, False), pytest.param(2, False, marks=pytest.mark.slow), pytest.param(4, True, marks=pytest.mark.slow)],
)
def test_weights_are_those_of_the_folder_also_after_a_stop_in_mid_epoch(
    pair: Path,
    expected: dict[str, torch.Tensor],
    workers: int,
    copies: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = [f"data.shard_cache={{folder: {tmp_path / 'cache'}, gigabytes: 0.0002}}"] if copies else []
    packed = config(pair, "shards", workers, *cache)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted, match="after step 4"):
            pretrain(packed, tmp_path / "run", quiet=True)
    pretrain(packed, tmp_path / "run", quiet=True)
    weights = trained(tmp_path / "run")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())
    assert (tmp_path / "cache").exists() == copies


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_comes_to_the_same_weights(
    pair: Path, expected: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = config(pair, "shards", 2, "training.checkpoint_minutes=1e-9")
    with monkeypatch.context() as patch:
        before_step(patch, 5, kill)
        with pytest.raises(Killed):
            pretrain(packed, tmp_path / "run", quiet=True)
    assert Run(tmp_path / "run").step == 4
    pretrain(packed, tmp_path / "run", quiet=True)
    weights = trained(tmp_path / "run")
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())


@pytest.mark.exhaustive
def test_two_processes_with_workers_come_to_the_same_weights_on_shards_and_on_the_folder(
    pair: Path, tmp_path: Path
) -> None:
    weights = {}
    for kind in ("image_folder", "shards"):
        keys = f"kind: {kind}, root: {pair / kind}, holdout: 0.2, image_size: 32, workers: 2"
        data = f"data={{{keys}, size: null, num_images: null}}"
        command = ["pretrain", DEBUG, "mse", data, "training.epoch_images=48", "--out", tmp_path / kind]
        run_two_processes("-m", "perceptual_mae.cli", *command)
        weights[kind] = trained(tmp_path / kind)
    assert all(torch.equal(value, weights["shards"][name]) for name, value in weights["image_folder"].items())


@pytest.mark.slow
def test_a_run_is_not_gone_on_with_on_other_shards(pair: Path, tmp_path: Path) -> None:
    pretrain(config(pair, "shards", 0, "training.epochs=1"), tmp_path / "run", quiet=True)
    write_shards(photos(tmp_path / "other", each=24), tmp_path / "shards", megabytes=0.05)
    with pytest.raises(UserError, match="are not those that the run in"):
        pretrain(config(tmp_path, "shards"), tmp_path / "run", quiet=True)
