"""Schedules against hand-worked values: progress, phases, ramps, warm-up and cosine."""

import math

import pytest

from conftest import debug_config
from perceptual_mae.config.build import build_timetable
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.schedules import Every, FromEpoch, Ramp, Timetable, TrainingProgress, is_active, value_at
from perceptual_mae.training.build import build_trainer


def epochs_on(when: FromEpoch | str) -> list[int]:
    return [epoch for epoch in range(1, 7) if is_active(when, TrainingProgress(epoch, 10 * epoch, 0.5))]


def test_from_epoch_begins_with_the_epoch_it_names() -> None:
    assert epochs_on(FromEpoch(from_epoch=1)) == [1, 2, 3, 4, 5, 6]
    assert epochs_on(FromEpoch(from_epoch=3)) == [3, 4, 5, 6]


def test_even_epochs_are_the_second_fourth_and_sixth() -> None:
    assert epochs_on("even_epochs") == [2, 4, 6]
    assert epochs_on("odd_epochs") == [1, 3, 5]
    assert epochs_on("always") == [1, 2, 3, 4, 5, 6]


def test_every_n_steps_begins_with_step_zero() -> None:
    on = [step for step in range(9) if is_active(Every(every=4), TrainingProgress(1, step, 0.0))]
    assert on == [0, 4, 8]


def test_progress_is_the_share_of_steps_taken_before_this_one() -> None:
    timetable = Timetable(steps_per_epoch=4, total_steps=8, warmup_steps=0)
    places = [timetable.progress(step) for step in range(8)]
    assert [place.fraction for place in places] == [0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8]
    assert [place.epoch for place in places] == [1, 1, 1, 1, 2, 2, 2, 2]
    assert [place.step for place in places] == list(range(8))


def test_a_ramp_is_linear_over_its_share_of_the_run_and_then_stays() -> None:
    ramp = Ramp(start=0.2, end=0.6, over=0.5)
    assert [round(value_at(ramp, fraction), 9) for fraction in (0, 0.125, 0.25, 0.5, 0.75, 1)] == [
        0.2, 0.3, 0.4, 0.6, 0.6, 0.6,
    ]  # fmt: skip
    assert value_at(0.7, 0.3) == 0.7


def test_the_rate_rises_linearly_and_falls_by_half_a_cosine() -> None:
    rate = Timetable(10, 50, 10).rate(peak=2.0, floor=1.0)
    assert [rate(step) for step in (0, 5, 10)] == [0.0, 1.0, 2.0]
    assert rate(30) == pytest.approx(1.5)  # half of the cosine
    assert rate(20) == pytest.approx(1.0 + 0.5 * (1 + math.cos(math.pi / 4)))
    assert rate(50) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (["schedule.warmup_ratio=0.25"], 10),
        (["schedule.warmup_ratio=0"], 0),
        (["schedule.warmup_ratio=1"], 40),
        (["schedule={warmup_ratio: null, warmup_epochs: 2}"], 20),
        (["schedule={warmup_ratio: null, warmup_epochs: 0.5}"], 5),
    ],
)
def test_the_warm_up_lasts_its_share_of_all_steps_or_its_epochs(settings: list[str], steps: int) -> None:
    config = debug_config("mse", "training.epochs=4", *settings)
    timetable = build_timetable(config.schedule, config.training.epochs, steps_per_epoch=10)
    assert (timetable.warmup_steps, timetable.total_steps) == (steps, 40)


def test_a_discriminators_rate_that_follows_falls_to_zero_and_not_to_the_generators_floor() -> None:
    options = ["optimizer.lr=1e-3", "optimizer.discriminator.lr=2e-3", "schedule.min_lr=5e-4"]
    for schedule, last in (("follow", 0.0), ("constant", 2e-3)):
        config = debug_config("ls_gan_p", *options, f"optimizer.discriminator.schedule={schedule}")
        trainer = build_trainer(config, make_accelerator(config, training=True), Timetable(5, 10, 2))
        assert trainer.learning_rate(10) == pytest.approx(5e-4)
        assert trainer.adversary.learning_rate(10) == pytest.approx(last, abs=1e-12)
        assert trainer.adversary.learning_rate(2) == pytest.approx(2e-3)
