"""`generator.init_from`: a run starts with another's encoder, whole or not at all, and then stands on its own."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conftest import DEBUG, debug_config, slow
from perceptual_mae import Run, UserError, pretrain
from perceptual_mae.cli import main
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.pretrained_weights.registry import sha256_of
from perceptual_mae.report.comparison import compare
from perceptual_mae.run.folder import read_config
from perceptual_mae.run.signals import Interrupted
from perceptual_mae.schedules import Timetable
from perceptual_mae.training.build import build_trainer
from perceptual_mae.training.initial_weights import find_start, open_start
from perceptual_mae.training.trainer import Trainer
from test_loop import stop_after, trained

SHORT = ("training.epochs=1", "training.epoch_images=16")
NOWHERE = Path("nowhere")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with averaged weights."""
    path = tmp_path_factory.mktemp("runs") / "other"
    pretrain(debug_config("mse", *SHORT, "training.seed=5", "training.ema_kimg=0.02"), path, quiet=True)
    return path


def at_step_0(*arguments: str) -> Trainer:
    config = debug_config(*arguments)
    return build_trainer(
        config, make_accelerator(config, training=True), Timetable(8, 16, 1), find_start(config, NOWHERE)
    )


def learnt(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name not in ("mean", "std")}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_encoder_is_the_others_at_step_0_and_nothing_else_is(other: Path) -> None:
    trainer, fresh = (at_step_0("ls_gan_p", *more) for more in ([f"generator.init_from={other}"], []))
    theirs = Run(other).generator(ema=True)
    assert equal(trainer.unwrapped_generator.encoder.state_dict(), theirs.encoder.state_dict())
    assert not equal(
        trainer.unwrapped_generator.encoder.state_dict(), Run(other).generator(ema=False).encoder.state_dict()
    )
    assert equal(trainer.unwrapped_generator.decoder.state_dict(), fresh.unwrapped_generator.decoder.state_dict())
    assert not equal(trainer.unwrapped_generator.decoder.state_dict(), theirs.decoder.state_dict())
    assert equal(trainer.unwrapped_discriminator.state_dict(), fresh.unwrapped_discriminator.state_dict())


def test_the_new_runs_own_average_begins_there_too(other: Path) -> None:
    trainer = at_step_0("mse", f"generator.init_from={other}", "training.ema_kimg=1")
    assert equal(trainer.ema.module.encoder.state_dict(), Run(other).generator().encoder.state_dict())


@pytest.mark.slow
def test_a_run_without_averages_a_checkpoint_and_exported_files_serve_as_well(other: Path, tmp_path: Path) -> None:
    pretrain(debug_config("mse", *SHORT, "training.seed=6"), tmp_path / "plain", quiet=True)
    assert not open_start(tmp_path / "plain").origin.ema
    encoder = Run(other).generator().encoder
    torch.save(encoder.export_state_dict(), tmp_path / "encoder.pt")
    save_file(encoder.export_state_dict(), tmp_path / "encoder.safetensors")
    for path in (Run(other).checkpoint, tmp_path / "encoder.pt", tmp_path / "encoder.safetensors"):
        trainer = at_step_0("mse", f"generator.init_from={path}")
        assert equal(trainer.unwrapped_generator.encoder.state_dict(), encoder.state_dict())


def test_the_images_are_normalised_as_the_new_run_says(other: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "perceptual_mae"):
        encoder = at_step_0(
            "mse", f"generator.init_from={other}", "data.mean=[0.5,0.4,0.3]"
        ).unwrapped_generator.encoder
    assert encoder.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert equal(learnt(encoder.state_dict()), learnt(Run(other).generator().encoder.state_dict()))
    assert "was trained under another data.mean than this run has" in caplog.text
    assert "data.std" not in caplog.text


@pytest.mark.slow
def test_a_run_says_what_it_started_from_and_stands_on_its_own_afterwards(
    other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(other, tmp_path / "first")
    sha256 = sha256_of(Run("first").checkpoint / "generator_ema.safetensors")
    arguments = ["mse", "training.epoch_images=16", "generator.init_from=first"]
    pretrain(debug_config(*arguments, "training.epochs=1"), "second", quiet=True)
    assert read_config(Path("second")).generator.init_from == str(tmp_path / "first")
    file = Run(tmp_path / "first").checkpoint / "generator_ema.safetensors"
    started_from = {"path": str(file), "step": 2, "ema": True, "sha256": sha256}
    assert json.loads(Path("second/environment.json").read_text())["started_from"] == started_from
    assert f"the encoder starts from {file} (step 2, averaged weights)" in Path("second/log.txt").read_text()
    shutil.rmtree("first")
    summary = pretrain(debug_config(*arguments, "training.epochs=2"), "second", quiet=True)
    assert summary["steps"] == 4
    assert json.loads(Path("second/environment.json").read_text())["started_from"] == started_from
    assert Run("second").generator() is not None
    with pytest.raises(UserError, match=r"generator.init_from: .*first: does not exist"):
        pretrain(debug_config(*arguments), "third", quiet=True)
    assert not Path("third").exists()


@pytest.mark.slow
def test_a_run_resumed_without_the_other_equals_an_unbroken_one(
    other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(other, tmp_path / "first")
    config = debug_config("mse", "training.epoch_images=32", f"generator.init_from={tmp_path / 'first'}")
    pretrain(config, tmp_path / "unbroken", quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted, match="after step 3"):
            pretrain(config, tmp_path / "resumed", quiet=True)
    shutil.rmtree(tmp_path / "first")
    pretrain(config, tmp_path / "resumed", quiet=True)
    assert equal(trained(tmp_path / "unbroken"), trained(tmp_path / "resumed"))


MISFITS = {
    "narrower": (["generator.width=16"], "30 of another shape (first: blocks.0.attn.proj.bias, (32,) for (16,))"),
    "deeper": (["generator.depth=3"], "12 missing (first: blocks.2.attn.proj.bias)"),
    "shallower": (["generator.depth=1"], "12 unexpected (first: blocks.1.attn.proj.bias)"),
    "finer": (["generator.patch_size=4"], "2 of another shape (first: patch_embed.proj.weight, (32, 3, 8, 8) for "),
    "larger images": (["data.image_size=64"], "1 of another shape (first: pos_embed, (1, 17, 32) for (1, 65, 32))"),
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("dry", [[], slow(["--dry-run"])])
def test_an_encoder_that_does_not_fit_is_one_line_exit_two_and_nothing_written(
    misfit: str, dry: list[str], other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, printed = MISFITS[misfit]
    arguments = [DEBUG, "mse", *change, f"generator.init_from={other}", "--out", str(tmp_path / "run"), *dry]
    assert main(["pretrain", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"generator.init_from: the encoder of {Run(other).checkpoint}" in line
    assert printed in line
    assert "give generator.* and data.image_size the values it was trained with" in line
    assert not (tmp_path / "run").exists()


def test_what_is_no_encoder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / "empty").mkdir()
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name, printed in (
        ("nothing", "does not exist; give a run folder or a checkpoint in it"),
        ("empty", "is not a run folder"),
        ("notes.txt", "neither a safetensors file nor a state dict"),
    ):
        with pytest.raises(UserError, match=rf"generator.init_from: .*{printed}") as refused:
            open_start(tmp_path / name)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"another architecture \(first keys: weight\)"):
        at_step_0("mse", f"generator.init_from={tmp_path / 'other.safetensors'}")


def test_a_dry_run_says_the_start(other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [DEBUG, "mse", f"generator.init_from={other}", "--dry-run", "--out", str(tmp_path / "run")]
    assert main(["pretrain", *arguments]) == 0
    assert f"the encoder starts from {Run(other).checkpoint}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_warm_start_is_a_difference_between_runs(other: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "cold", tmp_path / "warm"]
    pretrain(debug_config("mse", *SHORT), paths[0], quiet=True)
    pretrain(debug_config("mse", *SHORT, f"generator.init_from={other}"), paths[1], quiet=True)
    with pytest.raises(UserError) as refused:
        compare(paths, title="t")
    assert f"generator.init_from: none (cold), {other} (warm)" in str(refused.value)
