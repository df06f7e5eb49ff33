from collections import Counter

import pytest

from perceptual_mae.data.epoch_order import EpochPlan
from perceptual_mae.errors import UserError


def flat(plan: EpochPlan, epoch: int) -> list[tuple[int, int]]:
    return [sample for step in range(plan.steps_per_epoch) for sample in plan.batch(epoch, step)]


def test_an_epoch_is_one_pass_without_the_remainder() -> None:
    plan = EpochPlan(23, 5, seed=0)
    assert plan.steps_per_epoch == 4
    for epoch in (1, 2, 3):
        samples = flat(plan, epoch)
        assert len(set(samples)) == 20
        assert {pass_ for pass_, _ in samples} == {epoch}
        assert {index for _, index in samples} <= set(range(23))


def test_passes_and_seeds_differ_and_repeat() -> None:
    orders = [[index for _, index in flat(EpochPlan(50, 10, seed=seed), epoch)] for seed in (0, 1) for epoch in (1, 2)]
    assert len({tuple(order) for order in orders}) == 4
    assert flat(EpochPlan(50, 10, seed=1), 2) == flat(EpochPlan(50, 10, seed=1), 2)


def test_any_step_can_be_asked_for_in_any_order() -> None:
    plan = EpochPlan(40, 8, seed=3, epoch_images=24)
    expected = {(epoch, step): plan.batch(epoch, step) for epoch in range(1, 8) for step in range(3)}
    fresh = EpochPlan(40, 8, seed=3, epoch_images=24)
    for epoch, step in reversed(list(expected)):
        assert fresh.batch(epoch, step) == expected[epoch, step]


def test_epochs_in_images_cut_one_stream_of_whole_passes() -> None:
    plan = EpochPlan(10, 4, seed=0, epoch_images=9)
    assert plan.steps_per_epoch == 2  # 8 images
    stream = [sample for epoch in range(1, 6) for sample in flat(plan, epoch)]
    assert Counter(pass_ for pass_, _ in stream) == {1: 10, 2: 10, 3: 10, 4: 10}
    for pass_ in (1, 2, 3, 4):
        assert {index for p, index in stream if p == pass_} == set(range(10))
    assert [pass_ for pass_, _ in plan.batch(2, 0)] == [1, 1, 2, 2]  # images 8 to 11 of the stream


def test_pass_orders_are_the_same_with_and_without_epochs_in_images() -> None:
    assert flat(EpochPlan(12, 4, seed=5), 2) == flat(EpochPlan(12, 4, seed=5, epoch_images=12), 2)


def test_epochs_may_be_longer_than_the_data_and_batches_too() -> None:
    plan = EpochPlan(3, 8, seed=0, epoch_images=16)
    counts = Counter(index for _, index in flat(plan, 1))
    assert plan.steps_per_epoch == 2
    assert set(counts.values()) == {5, 6}


def test_what_fills_no_batch_is_refused() -> None:
    with pytest.raises(UserError, match="3 training images do not fill one batch of 8"):
        EpochPlan(3, 8, seed=0)
    with pytest.raises(UserError, match=r"training\.epoch_images is 7"):
        EpochPlan(100, 8, seed=0, epoch_images=7)
    with pytest.raises(ValueError, match="no step 12 in epoch 1"):
        EpochPlan(100, 8, seed=0).batch(1, 12)
