"""A run loses nothing when it stops, and harms nobody's files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import DEBUG, debug_config, generator_of, halved
from perceptual_mae import Run, UserError, pretrain
from perceptual_mae.cli import main
from perceptual_mae.cli.visualize import held_out_images
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.evaluation.reconstruction.data import open_held_out
from perceptual_mae.evaluation.reconstruction.evaluate import evaluate_run
from perceptual_mae.run import checkpoint
from perceptual_mae.run.signals import Interrupted, StopSignal
from perceptual_mae.training import held_out, loop
from perceptual_mae.training.trainer import Trainer
from processes import run_two_processes


def trained(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's last checkpoint: networks, optimisers, averages, balance."""
    files = sorted(Run(path).checkpoint.glob("*.safetensors"))
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


def losses(path: Path) -> list[dict]:
    return [record | {"images_per_second": 0, "data_wait": 0} for record in Run(path).metrics()]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let a signal arrive while the given step of a run is under way."""
    step, taken = Trainer.step, []

    def interrupted(self: Trainer, *arguments: object) -> dict[str, torch.Tensor]:
        taken.append(1)
        if len(taken) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", interrupted)


@pytest.mark.parametrize(
    ("method", "workers"),
    [
        ("stylegan2_ada_p", 0),
        *halved(
            [
                *(("mse", 2), ("mse", 0), ("ls_gan_p", 0), ("ls_gan_p", 2)),
                *(("stylegan2_ada_p", 2), ("official_code", 0), ("official_code", 2)),
            ]
        ),
    ],
)
def test_a_run_stopped_in_mid_epoch_and_resumed_equals_an_unbroken_one(
    method: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["training.epoch_images=48", "training.batch_size=8", "training.ema_kimg=0.05", "training.keep_last=9"]
    if method == "stylegan2_ada_p":
        options += ["augment.initial_p=0.3", "augment.kimg=0.2"]  # p moves, and more than once
    unbroken = debug_config(method, *options)
    resumed = debug_config(method, *options, f"data.workers={workers}")
    pretrain(unbroken, tmp_path / "unbroken", quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted, match="after step 3"):
            pretrain(resumed, tmp_path / "resumed", quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted, match="after step 7"):
            pretrain(resumed, tmp_path / "resumed", quiet=True)
    summary = pretrain(resumed, tmp_path / "resumed", quiet=True)
    whole, parts = trained(tmp_path / "unbroken"), trained(tmp_path / "resumed")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert summary["psnr"] == Run(tmp_path / "unbroken").summary()["psnr"]
    assert losses(tmp_path / "resumed")[-1] == losses(tmp_path / "unbroken")[-1]


@pytest.mark.slow
def test_a_finished_run_goes_on_when_it_gets_more_epochs(tmp_path: Path) -> None:
    pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    summary = pretrain(debug_config("mse", "training.epochs=3"), tmp_path / "run", quiet=True)
    assert summary["steps"] == 12
    assert [record["step"] for record in Run(tmp_path / "run").metrics() if "evaluation" not in record][-1] == 12


def test_the_run_folder_holds_what_it_promises(tmp_path: Path) -> None:
    path = tmp_path / "run"
    summary = pretrain(debug_config("ls_gan_p"), path, quiet=True)
    assert {"config.yaml", "environment.json", "metrics.jsonl", "images", "checkpoints", "summary.json", "log.txt"} <= {
        child.name for child in path.iterdir()
    }
    assert {"psnr", "ssim", "psnr_masked", "baselines"} <= summary.keys()
    assert set(summary["baselines"]) == {"mean_color", "nearest_patch", "inverse_distance"}
    assert sorted(image.name for image in (path / "images").iterdir()) == ["epoch_0001.png", "epoch_0002.png"]
    record = next(record for record in Run(path).metrics() if record["epoch"] == 2)
    assert {"step", "images_seen", "raw", "weighted", "active", "discriminator", "learning_rate"} <= record.keys()
    assert {"images_per_second", "data_wait", "total"} <= record.keys()
    assert set(record["active"]) == set(record["raw"]) == {"l1", "feature_matching", "style", "adversarial"}
    assert record["images_seen"] == record["step"] * 8
    reopened = Run(path).generator()
    assert not reopened.training
    images = torch.rand(2, 3, 32, 32)
    assert reopened.encoder(images).shape == (2, 17, 32)


@pytest.mark.slow
def test_two_evaluations_are_bit_identical(tmp_path: Path) -> None:
    runs = [pretrain(debug_config("mse"), tmp_path / name, quiet=True) for name in ("a", "b")]
    assert runs[0] == runs[1]
    pages = [(tmp_path / name / "images" / "epoch_0002.png").read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


@pytest.mark.slow
def test_a_runs_own_score_and_pictures_are_of_all_classes_as_evaluates_and_visualizes(tmp_path: Path) -> None:
    for kind, shade in (("a", 40), ("b", 120), ("c", 200)):  # read class by class
        for number in range(40):
            folder = tmp_path / "images" / kind
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (shade, shade, number)).save(folder / f"{number}.png")
    data = f"data={{kind: image_folder, root: {tmp_path / 'images'}, split_fractions: [0.5, 0.1, 0.4], image_size: 32}}"
    plain = ["data.size=null", "data.num_images=null", "training.epoch_images=8", "evaluation.limit=12"]
    config = debug_config("mse", data, *plain)
    summary = pretrain(config, tmp_path / "run", quiet=True)
    run = Run(tmp_path / "run")
    chosen = open_held_out(config, limit=12)
    found = evaluate_run(run, chosen, make_accelerator(config), metrics="psnr").report["scores"]
    assert {int(chosen.dataset[index][1]) for index in chosen.indices} == {0, 1, 2}
    assert summary["num_images"] == 12
    assert summary["psnr_masked"] == pytest.approx(found["masked"]["psnr"], abs=1e-3)
    assert summary["psnr"] == pytest.approx(found["composite"]["psnr"], abs=1e-3)
    shown = held_out_images(run, 4)
    assert len(shown.labels.unique()) > 1
    count = str(config.evaluation.grid_images)
    assert main(["visualize", str(run.path), "--count", count, "--out", str(tmp_path / "again.png")]) == 0
    with Image.open(tmp_path / "again.png") as drawn, Image.open(run.path / "images" / "epoch_0002.png") as own:
        assert drawn.tobytes() == own.tobytes()


def test_of_older_checkpoints_one_is_kept_every_so_many_epochs(tmp_path: Path) -> None:
    options = ["training.epochs=5", "training.epoch_images=16", "training.batch_size=8", "training.keep_last=1"]
    config = debug_config("mse", *options, "training.keep_every=2", "evaluation.every=0", "evaluation.limit=4")
    pretrain(config, tmp_path / "run", quiet=True)
    steps = [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path / "run" / "checkpoints")]
    assert steps == [4, 8, 10]  # epochs 2 and 4 of two steps each, and the last


def test_another_configuration_may_not_resume_a_run(tmp_path: Path) -> None:
    pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"other values of optimizer\.lr, training\.seed"):
        pretrain(debug_config("mse", "optimizer.lr=2e-3", "training.seed=1"), tmp_path / "run", quiet=True)


def test_somebody_elses_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="holds files that are not a run's"):
        pretrain(debug_config("mse"), tmp_path, quiet=True)
    assert [child.name for child in tmp_path.iterdir()] == ["thesis.tex"]


def test_fresh_starts_next_to_a_run_and_never_deletes_it(tmp_path: Path) -> None:
    pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    before = (tmp_path / "run" / "summary.json").read_bytes()
    pretrain(debug_config("l1"), tmp_path / "run", fresh=True, quiet=True)
    assert (tmp_path / "run" / "summary.json").read_bytes() == before
    assert Run(tmp_path / "run-2").config != Run(tmp_path / "run").config


def test_a_loss_that_stops_being_finite_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def spoiled(self: Trainer, batches: object, progress: object) -> dict[str, torch.Tensor]:
        if progress.step == 5:
            for parameter in self.unwrapped_generator.parameters():
                parameter.data.fill_(float("nan"))
        return step(self, batches, progress)

    monkeypatch.setattr(Trainer, "step", spoiled)
    with pytest.raises(UserError, match=r"'discriminator/loss' stopped being finite at step 5.*step_00000004"):
        pretrain(debug_config("ls_gan_p"), tmp_path / "run", quiet=True)
    assert Run(tmp_path / "run").step == 4
    assert all(bool(value.isfinite().all()) for value in trained(tmp_path / "run").values())


def test_running_out_of_memory_is_reported_with_what_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "step", exhausted)
    with pytest.raises(UserError, match=r"training.batch_size=8.*training.accumulation=2"):
        pretrain(debug_config("mse"), tmp_path / "run", quiet=True)


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    last = Run(tmp_path / "run").checkpoint
    (last / "optimizer.safetensors").write_bytes(b"damaged")
    assert Run(tmp_path / "run").step == 4
    pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    assert Run(tmp_path / "run").step == 8


def test_alarms_reach_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.GanMonitor, "observe", lambda *_: ["the generator has stopped looking"])
    pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    assert "the generator has stopped looking" in (tmp_path / "run" / "log.txt").read_text()


def test_the_papers_constant_adversarial_weight_trains_with_a_warning(tmp_path: Path) -> None:
    pretrain(debug_config("ls_gan_p", "losses.adversarial.weight=1.0"), tmp_path / "run", quiet=True)
    assert "a constant 1 (the paper's is 1)" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pretrain(debug_config("mse", "tracking.trackers=[tensorboard]"), tmp_path / "run", quiet=True)
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


@pytest.mark.slow
def test_a_signal_saves_and_exits_with_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "perceptual_mae.cli", "pretrain", DEBUG, "mse", "training.epochs=200"]
    command += [
        "evaluation.every=0",
        "training.checkpoint_every=1000",
        "data.workers=2",
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, reported = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in reported
    step = Run(tmp_path / "run").step
    assert 0 < step < 800
    lines = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert lines == [*range(2, step + 1, 2)]  # every second step; one that is alone yet waits in the checkpoint


@pytest.mark.slow
def test_a_run_opened_again_has_the_trained_weights_and_not_fresh_ones(tmp_path: Path) -> None:
    config = debug_config("ls_gan_p")
    pretrain(config, tmp_path / "run", quiet=True)
    reopened = Run(tmp_path / "run").generator().state_dict()
    kept = {name.removeprefix("generator/"): value for name, value in trained(tmp_path / "run").items()}
    assert all(torch.equal(value, kept[name]) for name, value in reopened.items())
    fresh = generator_of(config).state_dict()
    assert not torch.equal(reopened["encoder.blocks.0.attn.qkv.weight"], fresh["encoder.blocks.0.attn.qkv.weight"])


def test_what_was_learnt_is_saved_before_anything_else_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise UserError("a held-out image cannot be read")

    monkeypatch.setattr(held_out, "score_training", broken)
    with pytest.raises(UserError, match="held-out"):
        pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    assert Run(tmp_path / "run").step == 4


def test_a_generator_that_blew_up_is_reported_as_such_and_no_score_is_made_of_it(tmp_path: Path) -> None:
    plain = debug_config("mse", "training.epoch_images=8", "training.epochs=8")
    config = plain.model_copy(update={"optimizer": plain.optimizer.model_copy(update={"lr": 1e30})})
    with pytest.raises(UserError, match=r"stopped being finite at step \d+.*(likely spoiled|last good|no checkpoint)"):
        pretrain(config, tmp_path / "run", quiet=True)


def test_a_stop_at_an_epochs_end_still_evaluates_that_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(monkeypatch, 4)  # the last step of epoch 1
    with pytest.raises(Interrupted, match="after step 4"):
        pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    assert Run(tmp_path / "run").step == 4
    assert (tmp_path / "run" / "images" / "epoch_0001.png").exists()
    assert any("evaluation" in record for record in Run(tmp_path / "run").metrics())


@pytest.mark.slow
def test_repeating_a_finished_run_scores_it_again_and_adds_nothing(tmp_path: Path) -> None:
    first = pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    records = Run(tmp_path / "run").metrics()
    assert pretrain(debug_config("mse"), tmp_path / "run", quiet=True) == first
    assert Run(tmp_path / "run").metrics() == records
    configuration = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"training\.epochs: 1 epochs are 4 steps, but .* has taken 8 already"):
        pretrain(debug_config("mse", "training.epochs=1"), tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == configuration


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over_in_silence(tmp_path: Path) -> None:
    pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    for file in (tmp_path / "run" / "checkpoints").rglob("generator.safetensors"):
        file.write_bytes(b"damaged")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="no checkpoint is whole"):
        pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert "is not used" in (tmp_path / "run" / "log.txt").read_text()


def test_an_error_of_ours_leaves_its_traceback_in_the_runs_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(KeyError):
        pretrain(debug_config("mse"), tmp_path / "run", quiet=True)
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()


def test_a_second_signal_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        assert left == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert left == [130]


@pytest.mark.slow
def test_two_processes_train_stop_and_go_on_as_a_whole_run(tmp_path: Path) -> None:
    command = ["-m", "perceptual_mae.cli", "pretrain", DEBUG, "ls_gan_p", "training.accumulation=2"]
    for epochs in (1, 2):
        arguments = [f"training.epochs={epochs}", "schedule.warmup_ratio=0.0", "--out", str(tmp_path / "two")]
        reported = run_two_processes(*command, *arguments)
        assert "2 processes x 2 micro-batches x 2 images" in reported.stderr
    assert Run(tmp_path / "two").step == 8
    assert Run(tmp_path / "two").summary()["num_images"] == 8
