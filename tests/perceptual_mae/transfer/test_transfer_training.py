"""The loop of dense heads: rates by layer and step, batches in order."""

from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from perceptual_mae import UserError
from perceptual_mae.data.epoch_order import EpochPlan, ProcessShare
from perceptual_mae.transfer.loading import Keyed, SampleLoader, in_order, keys_of
from perceptual_mae.transfer.recipes import Schedule, ScheduleSection
from perceptual_mae.transfer.training import parameter_groups, train


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_memory() -> Iterator[None]:
    with mock.patch("gc.collect"):
        yield


def schedule_of(kind: Any, lr: float, steps: int, **options: Any) -> Schedule:
    return ScheduleSection(kind=kind, steps=steps, **options).at(lr)


def test_poly_falls_in_a_straight_line_after_a_linear_warm_up() -> None:
    schedule = schedule_of("poly", 1e-4, 160_000, warmup_steps=1500, warmup_from=1e-6)
    assert schedule.rate(0) == pytest.approx(1e-10)
    assert schedule.rate(750) == pytest.approx(1e-4 * (1 - 750 / 160_000) * 0.5, rel=1e-3)
    assert schedule.rate(80_000) == pytest.approx(5e-5)
    assert schedule.rate(160_000) == 0


def test_steps_multiply_the_rate_at_vit_dets_milestones() -> None:
    schedule = schedule_of("multi_step", 1e-4, 184_375, warmup_steps=250, milestones=(163_889, 177_546))
    rates = [schedule.rate(step) for step in (125, 1000, 163_888, 163_889, 177_546)]
    assert rates == pytest.approx([5e-5, 1e-4, 1e-4, 1e-5, 1e-6])


def test_a_cosine_ends_at_its_floor() -> None:
    schedule = schedule_of("cosine", 1.0, 100, warmup_steps=20, floor=0.1)
    assert [schedule.rate(step) for step in (10, 20, 60, 100)] == pytest.approx([0.5, 1.0, 0.55, 0.1])


class Line(nn.Module):
    """A loss of one batch: the squared error of a linear map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.head = nn.Linear(2, 1)
        self.relative_position_h = nn.Parameter(torch.zeros(3, 2))

    def loss(self, batch: Any, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.blocks[1](self.blocks[0](batch.values)) + self.relative_position_h.sum() + draws["noise"]
        return {"error": (self.head(hidden).squeeze(1) - batch.values.sum(1)).square().mean()}

    def draw(self, batch: Any, seed: int) -> dict[str, Tensor]:
        return {"noise": torch.stack([0.01 * torch.randn(2, generator=each) for each in batch.draws("noise", seed)])}


class Values(Keyed):
    values: Tensor

    def to(self, device: object) -> "Values":
        return self


class Numbers:
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index), 1.0])


def collate(samples: list[Tensor], keys: list[tuple[int, int]]) -> Values:
    batch = Values(*keys_of(keys))
    object.__setattr__(batch, "values", torch.stack(samples))
    return batch


def jitter(sample: Tensor, generator: torch.Generator) -> Tensor:
    return sample + torch.rand((), generator=generator)


def loader(workers: int = 0, **place: int) -> SampleLoader:
    share = ProcessShare(EpochPlan(10, 4, seed=3, epoch_images=12), **place)
    return SampleLoader(Numbers(), jitter, collate, share, seed=3, workers=workers)


def test_rates_shrink_layer_by_layer_and_tables_and_biases_do_not_decay() -> None:
    model = Line()
    model.blocks[0].bias.requires_grad_(False)

    def layer_of(name: str) -> int:
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else 3

    groups = parameter_groups(model, layer_of, 3, layer_decay=0.5, weight_decay=0.1)
    rows = [(each["layer"], each["lr_scale"], each["weight_decay"], len(each["params"])) for each in groups]
    assert rows == [(1, 0.25, 0.1, 1), (2, 0.5, 0.1, 1), (2, 0.5, 0.0, 1), (3, 1.0, 0.1, 1), (3, 1.0, 0.0, 2)]


def test_the_loader_goes_on_anywhere_and_cuts_batches_by_stride() -> None:
    whole = [step[0] for step, _ in zip(loader().from_step(0), range(7), strict=False)]
    later = next(loader().from_step(5))[0]
    assert torch.equal(later.values, whole[5].values)
    assert torch.equal(later.indices, whole[5].indices)
    parts = [loader(accumulation=2, num_processes=2, process_index=rank).from_step(1) for rank in (0, 1)]
    own = [next(part) for part in parts]
    for rank in (0, 1):
        for micro in (0, 1):
            assert torch.equal(own[rank][micro].values, whole[1].values[rank * 2 + micro :: 4])
    assert sorted(torch.cat([each.indices for each in whole[:5]]).tolist()) == sorted([*range(10)] * 2)


@pytest.mark.slow
def test_workers_read_what_the_main_process_reads() -> None:
    with_workers = loader(workers=2)
    for one, other, _ in zip(loader().from_step(2), with_workers.from_step(2), range(4), strict=False):
        assert torch.equal(one[0].values, other[0].values)
    with_workers.close()


def test_what_cannot_be_read_ends_the_pass_in_one_line() -> None:
    class Broken(Numbers):
        def __getitem__(self, index: int) -> Tensor:
            raise UserError(f"image {index}: is broken")

    with pytest.raises(UserError, match="image 7: is broken"):
        next(in_order(Broken(), lambda sample: sample, collate, indices=[7], batch_size=1))


def fit(model: Line, schedule: Schedule, **options: Any) -> list[dict[str, Any]]:
    groups = parameter_groups(model, lambda name: 1, 1, layer_decay=1.0, weight_decay=0.0)
    given = {"seed": 0, "batch_size": 4, "log_every": 20, **options}
    accumulation = given.pop("accumulation", 1)
    batches = loader(accumulation=accumulation)
    return train(model, batches, groups, schedule, Accelerator(cpu=True), **given)


def test_a_loss_falls_and_is_recorded_as_its_mean() -> None:
    records = fit(Line(), schedule_of("cosine", 0.05, 60))
    assert [each["step"] for each in records] == [20, 40, 60]
    assert records[-1]["total"] < 0.1 * records[0]["total"]
    assert records[0]["total"] == pytest.approx(records[0]["losses"]["error"])


def test_micro_batches_add_up_to_the_batch() -> None:
    outcomes = []
    for accumulation in (1, 2):
        model = Line()
        records = fit(model, schedule_of("cosine", 0.01, 5), accumulation=accumulation, log_every=5, clip_norm=1.0)
        outcomes.append((model.head.weight.detach().clone(), records[0]["total"]))
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0], rtol=1e-5, atol=1e-6)
    assert outcomes[0][1] == pytest.approx(outcomes[1][1], rel=1e-5)


def test_a_loss_that_is_no_number_ends_the_training_by_its_name() -> None:
    model = Line()
    nn.init.constant_(model.head.weight, float("nan"))
    with pytest.raises(UserError, match=r"the loss error is not finite at step 20; lower optimizer\.lr"):
        fit(model, schedule_of("cosine", 0.01, 60))


def test_the_held_out_score_is_taken_in_evaluation_mode_between_steps() -> None:
    model, modes = Line(), []

    def score() -> dict[str, float]:
        modes.append(model.training)
        return {"miou": 0.0}

    fit(model, schedule_of("cosine", 0.01, 6), score=score, score_every=2)
    assert modes == [False, False]  # at steps 2 and 4; the last is the caller's
