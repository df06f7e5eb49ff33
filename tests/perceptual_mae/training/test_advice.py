"""What a message advises can be done: every key that one names is changed as it says, at a resume or in a branch."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from conftest import debug_config, debug_trainer
from discriminators.augmentation.controller import Controller
from perceptual_mae.cli import main
from perceptual_mae.config.layers import to_yaml
from perceptual_mae.run.folder import claim, read_config, resolved
from perceptual_mae.run.run import Run
from perceptual_mae.schedules import Timetable
from perceptual_mae.training import messages
from perceptual_mae.training.branching import open_branch
from perceptual_mae.training.build import build_trainer
from perceptual_mae.training.divergence import explain
from perceptual_mae.training.gan_monitor import ALARMS
from perceptual_mae.training.loop import pretrain
from perceptual_mae.training.trainer import Trainer
from photographs import Spoilt

SHORT = ("evaluation.every=0", "evaluation.limit=2", "evaluation.grid_images=1")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped after 4 of 8 steps."""
    path = tmp_path_factory.mktemp("half") / "run"
    penalties = ("penalties.r1.gamma=1.0", "augment.kind=ada", "augment.p_max=0.5")
    pretrain(debug_config("ls_gan_p", *penalties, *SHORT), path, quiet=True)
    shutil.rmtree(path / "checkpoints" / "step_00000008")
    return path


@pytest.fixture
def run(half: Path, tmp_path: Path) -> Path:
    shutil.copytree(half, tmp_path / "run")
    return tmp_path / "run"


def resume(run: Path, *overrides: str) -> int:
    """Repeat the command of a run with overrides."""
    first = run.parent / "first.yaml"
    if not first.exists():
        first.write_text(to_yaml(resolved(read_config(run))))
    return main(["pretrain", str(first), *overrides, "--out", str(run)])


@pytest.mark.slow
def test_out_of_memory_advises_micro_batches_and_the_run_goes_on_with_them(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", exhausted)
        assert resume(run) == 2
    (advice,) = re.findall(r"repeat the command with (training\.accumulation=\d+)", capsys.readouterr().err)
    assert resume(run, advice) == 0
    assert Run(run).step == 8
    assert Run(run).config.training.accumulation == 2
    history = json.loads((run / "environment.json").read_text())["history"]
    assert history == [{"step": 4, "changed": {"training.accumulation": [1, 2]}}]


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "processes", "advice"),
    [(6, 2, 1, "=3 "), (8, 1, 2, "=2 "), (4, 2, 2, None), (7, 1, 1, "=7 "), (1, 1, 1, None)],
)
def test_micro_batches_are_advised_only_where_the_batch_can_be_cut_so(
    batch_size: int, accumulation: int, processes: int, advice: str | None
) -> None:
    section = debug_config("mse", "training.epoch_images=16").training
    training = section.model_copy(update={"batch_size": batch_size, "accumulation": accumulation})
    message = messages.out_of_memory(Path("run"), training, processes)
    assert (f"with training.accumulation{advice}" in message) if advice else ("repeat" not in message)


@pytest.mark.slow
def test_the_command_that_a_nan_advises_trains(run: Path) -> None:
    advice = explain(run, "l1", 5, 5, read_config(run))
    (words,) = re.findall(r"pmae (pretrain .*? optimizer\.lr=\S+)", advice)
    assert main([*words.split(), "--out", str(run.with_name("new"))]) == 0
    assert Run(run.with_name("new")).config.optimizer.lr == pytest.approx(5e-4)
    assert Run(run.with_name("new")).step == 8


def keys_of(advice: str) -> list[str]:
    """The overrides that a text asks for: a value where it states one, else a smaller or larger one."""
    overrides = re.findall(r"\b(?:losses|optimizer|penalties|augment|training)\.[\w.]+\w(?:=[\w.]+\w)?", advice)
    values = {"clip_norm": "1", "gamma": "2.0", "p_max": "0.4", "lr": "1e-5", "weight": "0.01"}
    stated = [key for key in overrides if "=" in key and not key.startswith("training.max_skips")]
    return stated + [f"{key}={values[name]}" for key in overrides if (name := key.rpartition(".")[2]) in values]


def advised() -> list[tuple[str, str]]:
    """All overrides that alarms, warnings and errors advise while a run trains, with where they stand."""
    controller = Controller(p_max=0.5, initial_p=0.5)
    texts = {name: alarm.message for name, alarm in ALARMS.items()} | {"leak": str(controller.warning)}
    texts["leak"] = texts["leak"].replace("r1.gamma", "penalties.r1.gamma")
    texts["skipped"] = messages.skipped([(1, "l1")], 1, 3)
    texts["nan"] = explain(Path("none"), "l1", 1, 1, debug_config("mse"))
    texts["bf16"] = "training.precision=bf16, training.precision=auto"
    keys = {override: name for name, text in texts.items() for override in keys_of(text)}
    keys |= {"losses.adversarial.weight={balanced: 0.05, cap: 1.0}": "constant weight", "training.ema_kimg=1": "no ema"}
    terms = ("l1", "adversarial", "feature_matching", "style")
    return sorted(
        (key, name) for key, name in keys.items() if not key.startswith("losses.") or key.split(".")[1] in terms
    )


@pytest.mark.slow
@pytest.mark.parametrize(("override", "where"), advised())
def test_a_key_that_a_message_advises_can_be_changed_in_a_branch(half: Path, override: str, where: str) -> None:
    config, branch = open_branch(half, "4", [override], half.with_name("branch"))
    accelerator = debug_trainer("mse").accelerator
    branch.load(build_trainer(config, accelerator, Timetable(4, 8, 1)), accelerator, config)
    key = override.partition("=")[0]
    assert any(changed.startswith(key) for changed in branch.changed), where


@pytest.mark.parametrize(
    "override",
    [
        *("training.epochs=3", "training.accumulation=4", "training.keep_last=1", "training.keep_every=2"),
        *("training.log_every=4", "training.checkpoint_every=2", "training.max_skips=0", "training.rollback_lr=0.5"),
        *("data.workers=1", "evaluation.limit=4", "tracking.run_name=x"),
    ],
)
def test_a_key_that_changes_nothing_learnt_may_change_at_a_resume(half: Path, override: str) -> None:
    key, value = override.split("=")
    section, name = key.split(".")
    before = read_config(half)
    part = getattr(before, section)
    changed = before.model_copy(
        update={section: type(part).model_validate(part.model_dump(by_alias=True) | {name: value})}
    )
    assert claim(half, changed) == half


@pytest.mark.slow
def test_what_changes_what_is_learnt_is_refused_and_the_answer_names_ways_that_work(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resume(run, "optimizer.lr=5e-4") == 2
    advice = capsys.readouterr().err
    assert all(way in advice for way in ("repeat its command", "--from-checkpoint newest", "--out", "--fresh"))
    assert resume(run) == 0
    assert resume(run, "optimizer.lr=5e-4", "training.epochs=1", "--fresh") == 0
    assert Run(run.with_name("run-2")).step == 4


@pytest.mark.slow
def test_fewer_epochs_than_trained_advise_more(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume(run) == 0
    assert resume(run, "training.epochs=1") == 2
    assert "ask for more epochs" in capsys.readouterr().err
    assert resume(run, "training.epochs=3") == 0
    assert Run(run).step == 12


@pytest.mark.slow
def test_accumulation_at_a_resume_is_exact_up_to_the_order_of_floats(tmp_path: Path) -> None:
    ends = []
    for accumulation in (1, 2):
        path = tmp_path / str(accumulation)
        pretrain(debug_config("mse", "training.epochs=1", *SHORT), path, quiet=True)
        pretrain(debug_config("mse", f"training.accumulation={accumulation}", *SHORT), path, quiet=True)
        ends.append(Run(path).generator().state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=2e-5)


@pytest.fixture
def spoilt(tmp_path: Path) -> Spoilt:
    """After its first call, which ended in the second step."""
    spoilt = Spoilt(tmp_path)
    assert spoilt.train() == 2
    return spoilt


@pytest.mark.slow
@pytest.mark.parametrize("way", ["raise", "repair", "repair one"])
def test_what_an_excess_of_unreadable_files_advises_lets_the_run_go_on(spoilt: Spoilt, way: str) -> None:
    if way == "raise":
        assert spoilt.train(0.2) == 0
        assert spoilt.equals_unbroken()
        return
    if way == "repair one":
        spoilt.cut.pop()
    spoilt.repair()
    assert spoilt.train() == 0
    left = spoilt.run / "unreadable.txt"
    assert (len(left.read_text().splitlines()) if left.exists() else 0) == 2 - len(spoilt.cut)


@pytest.mark.slow
def test_nothing_done_about_an_excess_is_refused_before_the_next_step_and_raising_helps_still(
    spoilt: Spoilt, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert spoilt.train() == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pmae: ")]
    assert "2 of 28 images cannot be read, more than 4%; fix them, or raise data.max_unreadable" in line
    assert "remove" not in line
    assert Run(spoilt.run).step == 2
    assert spoilt.train(0.2) == 0
    assert spoilt.equals_unbroken()


@pytest.mark.slow
def test_files_removed_after_training_has_begun_are_asked_back_empty_ones_will_do(
    spoilt: Spoilt, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in spoilt.cut:
        path.unlink()
    (spoilt.root / "a" / "new.png").write_bytes(b"")
    capsys.readouterr()
    assert spoilt.train(0.2) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pmae: ")]
    assert "2 files that it could not read are gone" in line
    assert all(str(path) in line for path in spoilt.cut)
    assert "put them back (empty files of these names will do)" in line
    (spoilt.root / "a" / "new.png").unlink()
    for path in spoilt.cut:
        path.touch()
    assert spoilt.train(0.2) == 0
    assert spoilt.equals_unbroken()
