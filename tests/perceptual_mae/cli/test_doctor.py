"""`pmae doctor`: what this installation has, and whether a configuration would run."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import DEBUG
from perceptual_mae.benchmark import machine
from perceptual_mae.cli import main
from perceptual_mae.pretrained_weights.registry import FOREIGN_WEIGHTS
from perceptual_mae.training.metrics import Scalars
from perceptual_mae.training.trainer import Trainer

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_optional_set_of_packages_is_explained() -> None:
    assert set(machine.EXTRAS) == set(PROJECT["optional-dependencies"])


def test_a_package_that_is_not_installed_is_missed_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "version_of", lambda name: None if name in ("pyarrow", "wandb") else "1.0")
    assert machine.missing_packages() == {"transfer": [], "interop": [], "tracking": ["wandb"], "parquet": ["pyarrow"]}


def test_the_rate_of_matrix_products_is_two_side_cubed_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SIDE", {"cpu": 8})
    ticks = iter(range(100))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(next(ticks)))
    # begun at 0, looked at 1, 2 and 3: three products until it stops at 3, and 4 when the rate is taken
    assert machine._rate(torch.float32, torch.device("cpu"), 3.0) == pytest.approx(2 * 8**3 * 3 / 4)


def test_it_prints_versions_the_machine_and_what_is_missing_without_paths(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PMAE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "SIDE", {"cpu": 8, "cuda": 8})
    assert main(["doctor", "--seconds", "0.01"]) == 0
    printed = capsys.readouterr().out
    assert f"- torch: {torch.__version__.partition('+')[0]}" in printed
    assert all(f"- missing: {name}, for {entry.unlocks}\n" in printed for name, entry in FOREIGN_WEIGHTS.items())
    assert "FLOP/s" in printed
    assert str(tmp_path) not in printed
    assert str(Path.home()) not in printed


@pytest.mark.slow
def test_a_configuration_is_checked_by_a_step_of_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SIDE", {"cpu": 8, "cuda": 8})
    assert main(["doctor", DEBUG, "ls_gan_p", "--seconds", "0.01"]) == 0
    printed = capsys.readouterr().out
    assert "training images" in printed
    assert "images/s, at most" in printed
    assert "- the whole run: 0.0 hours" in printed
    assert "- all recorded losses and gradient norms are finite\n" in printed


def test_losses_that_are_not_finite_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SIDE", {"cpu": 8, "cuda": 8})
    own = Trainer.step

    def broken(trainer: Trainer, *arguments: Any) -> Scalars:
        return own(trainer, *arguments) | {"raw/mse": torch.tensor(float("nan"))}

    monkeypatch.setattr(Trainer, "step", broken)
    assert main(["doctor", DEBUG, "mse", "--seconds", "0.01"]) == 0
    printed = capsys.readouterr().out
    assert "- losses that are not finite: raw/mse (step odd)" in printed
    assert "finite: total" not in printed


def test_a_mistaken_layer_is_answered_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "cifar01"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "unknown layer 'cifar01'" in printed.err
