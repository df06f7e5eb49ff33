"""Probes on features that are computed once lose neither features nor what is fitted to them when they stop."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from interrupting import LIMITS, ask_to_stop, at_call, kill

from conftest import KilledError
from perceptual_mae.cli import main
from perceptual_mae.evaluation import resumption
from perceptual_mae.evaluation.representation import evaluate, features, kth_heads, linear_probe, probe_head
from perceptual_mae.run import checkpoint
from processes import run_two_processes

pytestmark = pytest.mark.usefixtures("no_waiting_for_disk_and_memory")

KTH = ("--protocol", "kth", "--epochs", "2", "--batch-size", "8")
SGD = ("--optimizer", "sgd", "--epochs", "3", "--batch-size", "8")
LARS = ("--optimizer", "lars", "--epochs", "3", "--batch-size", "8")
PROBES = {
    "cached": ("--seeds", "0,1"),
    "kth_mlp": KTH,
    "kth_dense": (*KTH, "--head", "dense", "--baselines"),
    "cached_sgd": SGD,
    "cached_lars": LARS,
    "layers": ("--layers", "--seeds", "0"),
}
"""By what the file of scores is called."""
EXTRACTION = (features, "check_finite")  # a call for each of two features of a batch
FITS = {
    "cached": (linear_probe, "fit_lbfgs"),
    "layers": (linear_probe, "fit_lbfgs"),
    "kth_mlp": (kth_heads, "rate"),
    "kth_dense": (kth_heads, "rate"),
    "cached_sgd": (probe_head, "set_learning_rate"),
    "cached_lars": (probe_head, "set_learning_rate"),
}
"""Called for a penalty; for a step; for each of six rates in a step."""


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BATCH_SIZE", 8)


@pytest.fixture
def saves_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumption, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(resumption, "LARGEST_SHARE", float("inf"))


@pytest.fixture
def run(labelled_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(labelled_run, tmp_path / "run"))


def words_of(name: str, run: Path) -> list[str]:
    return ["probe", str(run), *PROBES[name], *LIMITS]


def scores_of(name: str, run: Path) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads((run / "evaluation" / f"probe_{name}_24_10.json").read_text())
    return scores


def unfinished(name: str, run: Path) -> Path:
    return run / "evaluation" / f"probe_{name}_24_10.unfinished"


UNBROKEN: dict[str, dict[str, Any]] = {}


def unbroken(name: str, labelled_run: Path, tmp_path: Path) -> dict[str, Any]:
    if name not in UNBROKEN:
        run = Path(shutil.copytree(labelled_run, tmp_path / "unbroken" / "run"))
        assert main(words_of(name, run)) == 0
        UNBROKEN[name] = scores_of(name, run)
    return UNBROKEN[name]


def slowly(*cases: tuple[Any, ...]) -> list[Any]:
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    ("name", "place", "calls"),
    [
        ("cached", EXTRACTION, (3, 3)),  # in the second batch; in the third of the call that goes on
        *slowly(("cached", FITS["cached"], (2, 7))),
        *slowly(("kth_mlp", FITS["kth_mlp"], (4, 8))),
        *slowly(("cached", EXTRACTION, (9,)), ("cached", FITS["cached"], (1, 1, 1)), ("layers", EXTRACTION, (3,))),
        *slowly(("layers", FITS["layers"], (5,)), ("cached_sgd", FITS["cached_sgd"], (1, 20, 33))),
        *slowly(("cached_lars", FITS["cached_lars"], (25,)), ("kth_dense", EXTRACTION, (5, 9, 9))),
    ],
)
def test_a_probe_that_was_stopped_and_goes_on_scores_as_one_that_was_not(
    name: str,
    place: tuple[Any, str],
    calls: tuple[int, ...],
    run: Path,
    labelled_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = unbroken(name, labelled_run, tmp_path)
    for call in calls:
        with at_call(place, call, ask_to_stop):
            assert main(words_of(name, run)) == 130
        last = capsys.readouterr().err.splitlines()[-1]
        assert f"saved in {unfinished(name, run)}; the same command goes on from there" in last
    assert main(words_of(name, run)) == 0
    assert scores_of(name, run) == expected
    assert not unfinished(name, run).exists()


def count_calls(place: tuple[Any, str]) -> Any:
    return mock.patch.object(*place, wraps=getattr(*place))


def test_features_are_kept_in_parts_and_each_batch_is_extracted_once(
    saves_always: None, run: Path, labelled_run: Path, tmp_path: Path
) -> None:
    expected = unbroken("cached", labelled_run, tmp_path)
    with at_call(EXTRACTION, 5, kill), pytest.raises(KilledError):  # in the third batch of the training images
        main(words_of("cached", run))
    with count_calls(EXTRACTION) as rest:
        assert main(words_of("cached", run)) == 0
    assert rest.call_count == 2 * (1 + 2)  # of two features: one batch of three, and two of the test images
    assert scores_of("cached", run) == expected


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "gone", "not the next"])
def test_a_damaged_part_and_what_follows_it_are_extracted_anew(
    damage: str, saves_always: None, run: Path, labelled_run: Path, tmp_path: Path
) -> None:
    expected = unbroken("cached", labelled_run, tmp_path)
    with at_call(FITS["cached"], 1, kill), pytest.raises(KilledError):
        main(words_of("cached", run))
    first, second, third = checkpoint.checkpoints(
        next(unfinished("cached", run).glob("features/encoder_train*/0-of-1"))
    )
    if damage == "cut":
        file = second / "features.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    else:
        shutil.rmtree(second)
    if damage == "not the next":
        first.rename(second)
    with count_calls(EXTRACTION) as rest:
        assert main(words_of("cached", run)) == 0
    assert rest.call_count == 2 * (3 if damage == "not the next" else 2)
    assert third.parent.parent.parent.parent == unfinished("cached", run)
    assert scores_of("cached", run) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "call"), [("kth_mlp", 8), ("cached", 8), ("cached_sgd", 49), ("layers", 3)])
def test_a_probe_that_was_killed_while_it_was_fitted_takes_no_step_and_no_penalty_twice(
    name: str, call: int, saves_always: None, run: Path, labelled_run: Path, tmp_path: Path
) -> None:
    expected = unbroken(name, labelled_run, tmp_path)
    whole = Path(shutil.copytree(labelled_run, tmp_path / "counted" / "run"))
    with count_calls(FITS[name]) as all_of_them:
        assert main(words_of(name, whole)) == 0
    with at_call(FITS[name], call, kill), pytest.raises(KilledError):
        main(words_of(name, run))
    with count_calls(FITS[name]) as rest:
        assert main(words_of(name, run)) == 0
    assert rest.call_count == all_of_them.call_count - (call - 1)
    assert scores_of(name, run) == expected


def test_a_quick_probe_writes_nothing_but_its_scores(run: Path) -> None:
    before = set(run.rglob("*"))
    with mock.patch.object(checkpoint, "save", side_effect=AssertionError("a checkpoint was written")):
        assert main(words_of("cached", run)) == 0
    assert set(run.rglob("*")) - before == {run / "evaluation", run / "evaluation" / "probe_cached_24_10.json"}


@pytest.mark.slow
def test_features_of_another_encoder_are_not_gone_on_with(
    saves_always: None, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with at_call(EXTRACTION, 5, kill), pytest.raises(KilledError):
        main(words_of("cached", run))
    describe = evaluate.describe

    def of_another(*given: Any, **options: Any) -> dict[str, Any]:
        return describe(*given, **options) | {"encoder_sha256": "0"}

    with mock.patch.object(evaluate, "describe", of_another):
        assert main(words_of("cached", run)) == 2
    assert "is of a stopped command with other values of encoder_sha256" in capsys.readouterr().err
    assert main([*words_of("cached", run), "--fresh"]) == 0


@pytest.mark.slow
def test_a_full_disk_keeps_no_features_and_ends_no_probe(
    saves_always: None, run: Path, labelled_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = unbroken("cached", labelled_run, tmp_path)
    full = OSError(28, "No space left on device")
    with mock.patch.object(checkpoint, "write_tensors", side_effect=full):
        assert main(words_of("cached", run)) == 0
    assert "features are not kept for a call that goes on" in capsys.readouterr().err
    assert scores_of("cached", run) == expected


BY_TWO = """
import sys
from conftest import KilledError
from interrupting import at_call, kill
from perceptual_mae.evaluation import resumption
from perceptual_mae.evaluation.representation import features
from perceptual_mae.cli import main

features.BATCH_SIZE = 4
resumption.SECONDS_BETWEEN, resumption.LARGEST_SHARE = 0.0, float("inf")
try:
    with at_call((features, "check_finite"), int(sys.argv[1]), kill):
        assert main(sys.argv[2:]) == 0
except KilledError:
    pass
"""


@pytest.mark.slow
def test_two_processes_keep_their_shares_of_the_features(run: Path, labelled_run: Path, tmp_path: Path) -> None:
    (tmp_path / "by_two.py").write_text(BY_TWO)
    whole = Path(shutil.copytree(labelled_run, tmp_path / "whole" / "run"))
    run_two_processes(tmp_path / "by_two.py", 999, *words_of("cached", whole))
    run_two_processes(tmp_path / "by_two.py", 5, *words_of("cached", run))
    parts = [
        checkpoint.checkpoints(unfinished("cached", run) / f"features/encoder_train/{rank}-of-2") for rank in (0, 1)
    ]
    assert [[checkpoint.step_of(path) for path in share] for share in parts] == [[4, 8]] * 2
    run_two_processes(tmp_path / "by_two.py", 999, *words_of("cached", run))
    assert scores_of("cached", run) == scores_of("cached", whole)
