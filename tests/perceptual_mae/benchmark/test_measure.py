"""Means, ratios and the order of steps on the bench, with made-up times; a real bench of debug size."""

from itertools import count

import pytest
import torch

from conftest import debug_config
from perceptual_mae.benchmark import measure as bench
from perceptual_mae.benchmark.measure import Candidate, measure, quartiles, random_batches, ratios
from perceptual_mae.benchmark.profiler import Clock
from perceptual_mae.benchmark.report import report, resident_peak
from perceptual_mae.benchmark.step_kinds import StepKind
from perceptual_mae.errors import UserError
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.trainer import Trainer


def candidate(seconds: list[dict[str, dict[str, float]]], batch_size: int = 8) -> Candidate:
    """A configuration of two kinds of step, one three times as common as the other, with made-up times."""
    kinds = [StepKind("odd", 0.75, 1, 0, 1), StepKind("even", 0.25, 2, 0, 1)]
    config = debug_config("mse", f"training.batch_size={batch_size}")
    return Candidate("made up", config, None, [], kinds, seconds=seconds)  # type: ignore[arg-type]


def test_a_mean_step_weighs_each_kind_by_how_often_it_comes() -> None:
    made_up = candidate(
        [
            {"odd": {"generator": 1.0, "rest": 1.0}, "even": {"generator": 1.0, "rest": 1.0, "style": 8.0}},
            {"odd": {"generator": 2.0, "rest": 2.0}, "even": {"generator": 6.0, "rest": 2.0}},
        ]
    )
    assert made_up.mean_seconds() == [0.75 * 2 + 0.25 * 10, 0.75 * 4 + 0.25 * 8]
    # of 4 + 5 seconds: the generator 1 + 3, rest 1 + 2, style a quarter of 8
    shares = made_up.part_shares()
    assert list(shares) == ["generator", "rest", "style"]
    assert shares == pytest.approx({"generator": 4 / 9, "rest": 3 / 9, "style": 2 / 9})


def every_kind(seconds: float) -> dict[str, dict[str, float]]:
    return {"odd": {"rest": seconds}, "even": {"rest": seconds}}


def test_a_ratio_is_taken_within_each_round() -> None:
    # A machine that runs three times as slow in the second round says the same.
    ours, theirs = (candidate([every_kind(t), every_kind(3 * t), every_kind(t)]) for t in (2.0, 1.0))
    assert ratios(ours, theirs) == quartiles([2.0, 2.0, 2.0])
    slower = candidate([every_kind(1.0), every_kind(6.0), every_kind(4.0)])
    assert ratios(slower, theirs) == quartiles([1.0, 2.0, 4.0])


def test_a_ratio_is_of_the_time_an_image_takes() -> None:
    small, large = candidate([every_kind(1.0)], batch_size=4), candidate([every_kind(1.5)], batch_size=8)
    assert ratios(large, small).median == 0.75


def test_quartiles_of_few_and_many_rounds() -> None:
    assert quartiles([3.0]) == bench.Quartiles(3.0, 3.0, 3.0)
    assert quartiles([5.0, 1.0, 2.0, 3.0, 4.0]) == bench.Quartiles(3.0, 2.0, 4.0)


def test_images_are_seeded_and_as_many_and_as_large_as_the_configuration_says() -> None:
    config = debug_config("mse", "training.batch_size=8", "training.accumulation=2")
    batches = random_batches(config)
    assert [tuple(batch.images.shape) for batch in batches] == [(4, 3, 32, 32)] * 2
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(8))
    assert torch.equal(batches[1].images, random_batches(config)[1].images)
    assert not torch.equal(batches[0].images, batches[1].images)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which every part takes a second."""
    ticks = count()
    clock = Clock("ticks", lambda: next(ticks), lambda start, end: float(end - start))
    monkeypatch.setattr(bench, "clock_of", lambda device: clock)


def test_configurations_take_turns_and_the_order_is_reversed_from_round_to_round(
    ticking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, int]] = []
    step = Trainer.step

    def recorded(self, batches, progress):  # type: ignore[no-untyped-def]
        taken.append((id(self), progress.epoch))
        return step(self, batches, progress)

    monkeypatch.setattr(Trainer, "step", recorded)
    progress: list[tuple[str, int, int]] = []
    (one, other), _ = measure(
        [("one", debug_config("mse")), ("other", debug_config("l1"))],
        rounds=2,
        on_progress=lambda *state: progress.append(state),
    )
    first, second = id(one.trainer), id(other.trainer)
    forth = [(first, 1), (second, 1), (first, 2), (second, 2)]
    assert taken == forth[::-1] + forth + forth[::-1] + forth  # warm-up, count, two rounds
    assert progress == [("bench", done, 16) for done in range(1, 17)]
    assert len(one.seconds) == len(other.seconds) == 2


@pytest.mark.parametrize(
    ("overrides", "held"), [([], 0.3), (["augment.initial_p=0.1"], 0.1), (["augment.target=null"], 0.0)]
)
def test_augmentation_that_adapts_is_held_where_it_costs_and_other_augmentation_left_alone(
    overrides: list[str], held: float
) -> None:
    adapting = bench.enter("ada", debug_config("stylegan2_ada_p", *overrides))
    adapting.step(TrainingProgress(1, 1, 1.0))
    assert adapting.augment_p == held
    augmentation = adapting.trainer.adversary.augmentation
    assert augmentation.p == pytest.approx(held, abs=1e-3)


def test_the_number_of_threads_is_that_asked_for_and_then_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(bench, "run_rounds", lambda *_: seen.append(torch.get_num_threads()))
    measure([("one", debug_config("mse"))], threads=before + 1)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_too_little_memory_is_reported_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(bench, "run_rounds", fail)
    with pytest.raises(UserError, match="--batch-size"):
        measure([("one", debug_config("mse"))])


def test_a_report_holds_means_over_kinds_and_ratios_to_the_second(ticking: None) -> None:
    narrow = debug_config("ls_gan_p", "discriminator.base_channels=8", "training.log_every=8")
    configs = [("ls_gan_p", narrow), ("mse", debug_config("mse"))]
    candidates, clock = measure(configs, rounds=1)
    reported = report(candidates, clock, threads=1)
    assert (reported["reference"], reported["rounds"], reported["clock"]) == (1, 1, "ticks")
    trees = {tree["name"]: tree for tree in reported["configurations"]}
    assert list(trees) == ["ls_gan_p", "mse"]
    for tree in trees.values():
        assert sum(part["share"] for part in tree["parts"].values()) == pytest.approx(1)
        assert sum(step["weight"] for step in tree["steps"]) == pytest.approx(1)
        for name in ("flops", "discriminator_passes", "milliseconds"):
            mean = tree[name]["median"] if name == "milliseconds" else tree[name]
            assert mean == pytest.approx(sum(step["weight"] * step[name] for step in tree["steps"]))
    assert trees["mse"]["ratio"] == {"median": 1, "lower": 1, "upper": 1}
    # By a clock of equal ticks a ratio is one of how many parts a step has.
    expected = trees["ls_gan_p"]["milliseconds"]["median"] / trees["mse"]["milliseconds"]["median"]
    assert trees["ls_gan_p"]["ratio"]["median"] == pytest.approx(expected)
    assert trees["ls_gan_p"]["discriminator_passes"] == pytest.approx(2)
    assert trees["mse"]["discriminator_passes"] == 0
    assert trees["ls_gan_p"]["peak_memory"] > trees["mse"]["peak_memory"] > 0


def test_a_report_of_one_configuration_compares_it_to_itself(ticking: None) -> None:
    candidates, clock = measure([("mse", debug_config("mse"))], rounds=1)
    reported = report(candidates, clock, threads=1)
    assert reported["reference"] == 0
    assert reported["configurations"][0]["ratio"]["median"] == 1


def test_the_resident_peak_holds_what_was_touched() -> None:
    peak = resident_peak()
    assert peak is not None
    assert 50e6 < peak < 1e12
    ballast = torch.ones(1)
    while (held := resident_peak() or 0) <= peak:  # as soon as more is held than ever before
        ballast = torch.ones(2 * len(ballast) + 10_000_000)
    assert held > peak
