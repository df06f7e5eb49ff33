"""A branch goes on from a checkpoint of another run with other values, and says what it could not keep."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import debug_config, debug_trainer
from perceptual_mae.cli import main
from perceptual_mae.report.run_records import read_run_record
from perceptual_mae.run import checkpoint
from perceptual_mae.run.run import Run
from perceptual_mae.schedules import Timetable
from perceptual_mae.training.branching import Branch, open_branch
from perceptual_mae.training.build import build_trainer
from perceptual_mae.training.loop import pretrain

SHORT = ("evaluation.every=0", "evaluation.limit=2", "evaluation.grid_images=1", "training.ema_kimg=0.1")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 8 steps with checkpoints of steps 4 and 8."""
    path = tmp_path_factory.mktemp("source") / "run"
    pretrain(debug_config("ls_gan_p", *SHORT), path, quiet=True)
    return path


def branch_of(source: Path, *overrides: str, step: str = "4") -> tuple[Branch, int]:
    """Load a branch into a trainer of its configuration; return it with the step it begins at."""
    config, branch = open_branch(source, step, overrides, source.with_name("branch"))
    accelerator = debug_trainer("mse").accelerator
    trainer = build_trainer(config, accelerator, Timetable(4, 8, 1))
    _, begins = branch.load(trainer, accelerator, config)
    own = trainer.unwrapped_generator.state_dict()
    saved = load_file(branch.checkpoint / "generator.safetensors")
    assert all(torch.equal(own[name], value) for name, value in saved.items())
    return branch, begins


@pytest.mark.slow
def test_a_branch_without_changes_ends_as_the_run_did_bit_for_bit(source: Path, tmp_path: Path) -> None:
    assert main(["pretrain", str(source), "--from-checkpoint", "4", "--out", str(tmp_path / "new")]) == 0
    ends = [Run(path).checkpoint for path in (source, tmp_path / "new")]
    assert [checkpoint.step_of(end) for end in ends] == [8, 8]
    for file in sorted(ends[0].glob("*.safetensors")):
        before, after = load_file(file), load_file(ends[1] / file.name)
        assert all(torch.equal(value, after[name]) for name, value in before.items()), file.name
    record = read_run_record(tmp_path / "new", "new")
    assert record.environment["branched_from"]["step"] == 4
    assert any("branched from" in note and "with the same values" in note for note in record.notes)


@pytest.mark.slow
def test_a_branch_is_resumed_by_its_own_command_without_the_first_run(source: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    shutil.copytree(source, first)
    command = ["pretrain", str(first), "--from-checkpoint", "4", "optimizer.lr=5e-4", "--out", str(tmp_path / "new")]
    assert main(command) == 0
    shutil.rmtree(tmp_path / "new" / "checkpoints" / "step_00000008")
    shutil.rmtree(first / "checkpoints")
    again = ["pretrain", str(tmp_path / "new" / "config.yaml"), "--out", str(tmp_path / "new")]
    assert main(again) == 0
    assert Run(tmp_path / "new").step == 8
    changed = json.loads((tmp_path / "new" / "environment.json").read_text())["branched_from"]["changed"]
    assert changed == {"optimizer.lr": [0.001, 0.0005]}


@pytest.mark.parametrize(
    ("overrides", "not_kept", "begins"),
    [
        ((), [], 4),
        (("optimizer.lr=5e-4", "losses.adversarial.weight=0.01", "training.precision=bf16"), [], 4),
        (("training.batch_size=4",), ["step 4 (it is step 8 of 4 images)"], 8),
        (("training.ema_kimg=null",), ["averaged weights (training.ema_kimg is null)"], 4),
        (("discriminator.base_channels=16",), ["the discriminator (it begins anew)"], 4),
        (
            ("discriminator=null", *(f"losses.{term}=null" for term in ("feature_matching", "style", "adversarial"))),
            ["the discriminator"],
            4,
        ),
        (("generator.freeze_encoder=true",), ["moments of the generator's optimiser"], 4),
        (("augment={kind: ada}",), ["state of augmentation (it begins anew)"], 4),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_what_a_branch_cannot_keep_is_said(
    source: Path, overrides: tuple[str, ...], not_kept: list[str], begins: int
) -> None:
    branch, step = branch_of(source, *overrides)
    assert (branch.not_kept, step) == (not_kept, begins)
    assert all(words in str(branch) for words in not_kept)


def test_an_average_that_begins_in_a_branch_begins_with_the_weights(source: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(source, plain)
    for path in (plain / "checkpoints").iterdir():
        (path / "generator_ema.safetensors").unlink()
        manifest = json.loads((path / "manifest.json").read_text())
        del manifest["generator_ema.safetensors"]
        (path / "manifest.json").write_text(json.dumps(manifest))
    branch, _ = branch_of(plain)
    assert branch.not_kept == ["no averaged weights were kept before: the average begins here"]


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--from-checkpoint", "5"], "has checkpoints of steps 4, 8; name one, or newest"),
        (["--from-checkpoint", "x"], "has checkpoints of steps 4, 8; name one, or newest"),
        (["--from-checkpoint", "4", "mse"], "mse: a branch keeps the run's configuration"),
        (["--from-checkpoint", "4", "generator.width=64"], "has another architecture than generator.width asks for"),
        (["--from-checkpoint", "4", "optimizer.lr=0"], "optimizer.lr: found 0"),
        (["--from-checkpoint", "4", "generator.init_from=a.pth"], "generator.init_from: a branch has the networks of"),
        (["--from-checkpoint", "4", "discriminator.init_from=d.pt"], "discriminator.init_from: a branch has the"),
        (["--from-checkpoint", "8", "training.epochs=1"], "ask for more epochs"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_a_branch_that_cannot_be_is_refused_and_nothing_is_trained(
    source: Path, arguments: list[str], answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", str(source), *arguments, "--out", str(tmp_path / "new")]) == 2
    assert answer in capsys.readouterr().err
    assert not (tmp_path / "new" / "config.yaml").exists()


def test_a_branch_needs_a_folder_of_its_own(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", str(source), "--from-checkpoint", "4", "--out", str(source)]) == 2
    assert "a branch needs a folder of its own" in capsys.readouterr().err
