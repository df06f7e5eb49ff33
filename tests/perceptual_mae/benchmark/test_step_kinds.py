"""A mean step is computed from as few kinds of step as possible: weights worked out by hand and by counting."""

import pytest

from conftest import debug_trainer
from perceptual_mae.benchmark.step_kinds import mean_weights, step_kinds, work_at
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.trainer import Trainer

ONE_TERM = [*(f"losses.{name}=null" for name in ("l1", "feature_matching", "style")), "losses.adversarial.weight=1"]
CASES = {
    "mse": (["mse"], {"odd": 1 / 2, "even": 1 / 2}),
    "r1 and path length": (
        ["stylegan2_ada_p", *ONE_TERM],
        # path length at 4, 8, 12, ...; r1 at 0, 16, ..., where path length is due too
        {"odd": 1 / 4, "even": 1 / 2, "odd + path_length": 1 / 4 - 1 / 16, "odd + path_length + r1": 1 / 16},
    ),
    "a discriminator that learns in every other step": (
        ["stylegan2_ada_p", *ONE_TERM, "penalties.path_length=null", "discriminator.every=2"],
        {  # r1 in every sixteenth update; of an even epoch it costs what it does in an odd one
            **dict.fromkeys(("odd", "even", "even + discriminator"), 1 / 4),
            "odd + discriminator": 14 / 64,
            "odd + discriminator + r1": 2 / 64,
        },
    ),
    "a term every third step": (
        ["l1", "losses.mse={weight: 1.0, when: {every: 3}}"],
        # two terms are looked at in every thousandth step, if both are on then
        {
            **dict.fromkeys(("odd", "even"), 1 / 3),
            **dict.fromkeys(("odd + mse", "even + mse"), 1 / 6 - 1 / 6000),
            **dict.fromkeys(("odd + mse + telemetry", "even + mse + telemetry"), 1 / 6000),
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_worked_out_by_hand(case: str) -> None:
    arguments, expected = CASES[case]
    found = {kind.label: kind.weight for kind in step_kinds(debug_trainer(*arguments, "training.log_every=1000"))}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("method", ["mse", "ls_gan_p", "msg_gan_p", "stylegan2_ada_p"])
def test_the_mean_of_made_up_costs_is_that_of_a_long_run(method: str) -> None:
    trainer = debug_trainer(method, "training.log_every=10")
    costs = {"odd": 5.0, "even": 7.0, "r1": 3.0, "path_length": 2.0, "odd balance": 0.5, "even balance": 0.75}
    costs |= {"odd telemetry": 0.25, "even telemetry": 1.25}

    def cost(progress: TrainingProgress) -> float:
        return sum(costs[name] for name in work_at(trainer, progress))

    steps = [TrainingProgress(epoch, step, 1.0) for epoch in (1, 2) for step in range(1600)]
    expected = sum(map(cost, steps)) / len(steps)
    kinds = step_kinds(trainer)
    assert sum(kind.weight for kind in kinds) == pytest.approx(1)
    assert sum(kind.weight * cost(kind.progress(0)) for kind in kinds) == pytest.approx(expected)


def is_due(trainer: Trainer, name: str, progress: TrainingProgress) -> bool:
    adversary = trainer.adversary
    assert adversary is not None
    if name == "r1":
        return adversary.r1 is not None and adversary.r1.is_due(progress.step)
    if name == "path_length":
        return adversary.path_length is not None and adversary.path_length.is_due(progress.step)
    assert name in ("balance", "telemetry")
    return progress.step % 8 == 0


def test_a_kinds_moments_come_back_and_do_what_its_label_says() -> None:
    trainer = debug_trainer("stylegan2_ada_p")
    for kind in step_kinds(trainer):
        parity, *extra = kind.label.split(" + ")
        moments = [kind.progress(number) for number in range(4)]
        assert len({progress.step for progress in moments}) == 4
        for progress in moments:
            assert progress.epoch % 2 == (parity == "odd")
            for name in ("r1", "path_length", "balance"):
                assert is_due(trainer, name, progress) == (name in extra), kind.label


def test_epochs_are_taken_after_every_term_has_come_in() -> None:
    late = "losses.mse={weight: 1.0, when: {from_epoch: 4}}"
    assert {kind.epoch for kind in step_kinds(debug_trainer("l1", late))} == {5, 6}


def test_intervals_that_hardly_ever_meet_take_no_time() -> None:
    every = [f"losses.{name}={{weight: 1.0, when: {{every: {n}}}}}" for name, n in (("mse", 99991), ("ms_ssim", 99989))]
    kinds = step_kinds(debug_trainer("l1", *every, "data.image_size=32"))
    assert sum(kind.weight for kind in kinds) == pytest.approx(1)


def test_what_always_comes_together_counts_together() -> None:
    plain, both = frozenset({"odd"}), frozenset({"odd", "a", "b"})
    assert mean_weights({plain: 0.75, both: 0.25}) == pytest.approx({plain: 0.75, both: 0.25})
    a, b = frozenset({"odd", "a"}), frozenset({"odd", "b"})
    # one with both costs a + b - plain
    assert mean_weights({plain: 0.4, a: 0.3, b: 0.2, both: 0.1}) == pytest.approx({plain: 0.3, a: 0.4, b: 0.3})
