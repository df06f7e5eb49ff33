import itertools
import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import by_hand, slow
from perceptual_mae.data.decoding import UnreadableImageError
from perceptual_mae.data.draws import DropPathMasks, TrainingMasks
from perceptual_mae.data.image_folder import ImageFolder
from perceptual_mae.data.loading import Batch, EpochPlan, TrainLoader, evaluation_batches
from perceptual_mae.data.shapes import Shapes
from perceptual_mae.data.transforms import EvaluationTransform, TrainTransform
from perceptual_mae.errors import UserError
from perceptual_mae.masking import MASKINGS
from perceptual_mae.schedules import TrainingProgress

SEED = 5
TRANSFORM = TrainTransform((16, 16), color_jitter=0.2)


class Numbered:
    """Images whose colour tells their index; those of `broken` cannot be read."""

    classes: tuple[str, ...] = ()

    def __init__(self, count: int, broken: frozenset[int] = frozenset()) -> None:
        self.count = count
        self.broken = broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in self.broken:
            raise UnreadableImageError(f"photos/{index}.jpg", "cut off")
        return torch.full((3, 4, 4), index % 256, dtype=torch.uint8), index


def keep(image: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return image


def loader(workers: int = 0, accumulation: int = 1, **options: int) -> TrainLoader:
    plan = EpochPlan(50, 12, seed=SEED)
    shapes = Shapes("train", num_images=50)
    return TrainLoader(shapes, TRANSFORM, plan, seed=SEED, workers=workers, accumulation=accumulation, **options)


def numbered(broken: set[int], count: int = 400, batch_size: int = 20, workers: int = 0) -> TrainLoader:
    dataset, plan = Numbered(count, frozenset(broken)), EpochPlan(count, batch_size, seed=SEED)
    return TrainLoader(dataset, keep, plan, seed=SEED, workers=workers)


def assert_same(first: list[list[Batch]], second: list[list[Batch]]) -> None:
    assert [len(step) for step in first] == [len(step) for step in second]
    for a, b in zip(itertools.chain(*first), itertools.chain(*second), strict=True):
        for name in ("images", "labels", "indices", "passes"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert a.unreadable == b.unreadable


def test_a_step_holds_the_plans_samples_and_their_labels() -> None:
    shapes = Shapes("train", num_images=50)
    steps = list(loader().epoch(2))
    assert len(steps) == 4
    for step, (batch,) in enumerate(steps):
        assert batch.images.shape == (12, 3, 16, 16)
        assert batch.images.dtype == torch.uint8
        assert list(zip(batch.passes.tolist(), batch.indices.tolist(), strict=True)) == loader().plan.batch(2, step)
        assert batch.labels.tolist() == [shapes[i][1] for i in batch.indices.tolist()]


def test_batches_become_floats_between_0_and_1() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    batch = Batch(images, torch.tensor([3]), torch.tensor([7]), torch.tensor([1]), ("a",))
    moved = batch.to("cpu")
    assert moved.images.dtype == torch.float32
    assert moved.images.flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert torch.equal(moved.to("cpu").images, moved.images)
    assert batch.images.dtype == torch.uint8
    assert (len(moved), moved.labels.tolist(), moved.unreadable) == (1, [3], ("a",))


def first_draws(seed: int, epochs: int = 2) -> dict[tuple[int, int], float]:
    """By (pass, index), the first number of the generator that augments a sample."""
    numbers: dict[tuple[int, int], float] = {}

    def draw(image: Tensor, generator: torch.Generator) -> Tensor:
        order.append(torch.rand((), generator=generator).item())
        return image

    order: list[float] = []
    batches = TrainLoader(Numbered(24), draw, EpochPlan(24, 8, seed=SEED), seed=seed, workers=0)
    for epoch in range(1, epochs + 1):
        for (batch,) in batches.epoch(epoch):
            samples = zip(batch.passes.tolist(), batch.indices.tolist(), strict=True)
            numbers |= dict(zip(samples, order, strict=True))
            order.clear()
    return numbers


def test_augmentation_differs_between_samples_passes_and_seeds_and_repeats_otherwise() -> None:
    one, other = first_draws(seed=1), first_draws(seed=2)
    assert one == first_draws(seed=1)
    assert one.keys() == other.keys() == {(one_pass, index) for one_pass in (1, 2) for index in range(24)}
    assert len({*one.values(), *other.values()}) == 2 * 2 * 24


def test_draws_for_a_batch_differ_between_samples_passes_seeds_and_names_and_repeat_otherwise() -> None:
    batch = Batch(torch.zeros(4, 3, 2, 2), torch.zeros(4), torch.tensor([0, 1, 0, 1]), torch.tensor([1, 1, 2, 2]))

    def numbers(name: str, seed: int) -> list[float]:
        return [torch.rand((), generator=generator).item() for generator in batch.draws(name, seed)]

    assert numbers("mask", 0) == numbers("mask", 0)
    assert len({*numbers("mask", 0), *numbers("mask", 1), *numbers("drop path", 0)}) == 12


@pytest.mark.parametrize("kind", ["random", "grid", "block"])
def test_masks_differ_between_samples_passes_and_seeds(kind: str) -> None:
    indices, passes = torch.arange(16) % 8, 1 + torch.arange(16) // 8
    batch = Batch(torch.zeros(16, 3, 2, 2), torch.zeros(16), indices, passes)
    draw, progress = MASKINGS[kind], TrainingProgress(1, 0, 0.0)
    masks = [TrainingMasks(draw, 0.75, (14, 14), seed)(batch, progress) for seed in (0, 1)]
    for first, second in ((masks[0][:8], masks[0][8:]), (masks[0], masks[1]), (masks[0][:8], masks[0][:8].roll(1, 0))):
        assert (first != second).any(dim=1).float().mean() > 0.5  # a grid has few offsets: some may agree


def test_drop_path_masks_differ_between_samples_passes_and_seeds() -> None:
    indices, passes = torch.arange(8) % 4, 1 + torch.arange(8) // 4
    batch = Batch(torch.zeros(8, 3, 2, 2), torch.zeros(8), indices, passes)
    masks = torch.cat([DropPathMasks(0.5, 64, seed)(batch) for seed in (0, 1)])
    assert len(masks.unique(dim=0)) == 16


def test_workers_change_nothing() -> None:
    alone, helped = loader(accumulation=2), loader(workers=2, accumulation=2)
    state = torch.random.get_rng_state()
    for epoch in (1, 2, 1):
        assert_same(list(alone.epoch(epoch)), list(helped.epoch(epoch)))
    assert torch.equal(state, torch.random.get_rng_state())
    # An epoch left half-way, and the next one started in its middle.
    left = helped.epoch(1)
    next(left)
    del left
    assert_same(list(alone.epoch(3))[2:], list(helped.epoch(3, first_step=2)))
    helped.close()


def test_an_epoch_entered_in_its_middle_is_the_rest_of_the_whole_one() -> None:
    whole = list(loader().epoch(1))
    for first_step in range(5):
        assert_same(whole[first_step:], list(loader().epoch(1, first_step=first_step)))


@pytest.mark.parametrize(("num_processes", "accumulation"), [(1, 3), (2, 1), (2, 3), (3, 2)])
def test_processes_and_micro_batches_part_the_global_batch_by_stride(num_processes: int, accumulation: int) -> None:
    whole = [step[0] for step in loader().epoch(1)]
    parts = [
        list(loader(accumulation=accumulation, num_processes=num_processes, process_index=r).epoch(1))
        for r in range(num_processes)
    ]
    stride = num_processes * accumulation
    for step, batch in enumerate(whole):
        for r, a in itertools.product(range(num_processes), range(accumulation)):
            part, start = parts[r][step][a], r * accumulation + a
            assert torch.equal(part.indices, batch.indices[start::stride])
            assert torch.equal(part.images, batch.images[start::stride])  # the same augmentation, too


def test_augmentation_differs_between_passes_and_not_between_epoch_lengths() -> None:
    shapes = Shapes("train", num_images=50)
    short = TrainLoader(shapes, TRANSFORM, EpochPlan(50, 10, seed=SEED, epoch_images=20), seed=SEED, workers=0)
    long = TrainLoader(shapes, TRANSFORM, EpochPlan(50, 10, seed=SEED), seed=SEED, workers=0)
    images: dict[tuple[int, int], Tensor] = {}
    for (batch,) in itertools.chain(long.epoch(1), long.epoch(2)):
        images |= {(int(p), int(i)): x for p, i, x in zip(batch.passes, batch.indices, batch.images, strict=True)}
    for (batch,) in itertools.chain(*(short.epoch(epoch) for epoch in range(1, 6))):
        for p, i, x in zip(batch.passes.tolist(), batch.indices.tolist(), batch.images, strict=True):
            assert torch.equal(images[p, i], x)
    assert sum(torch.equal(images[1, i], images[2, i]) for i in range(50)) == 0


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"12 is not a multiple of 5 process\(es\) x 1"):
        loader(num_processes=5)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_replaced_by_the_next_and_logged_once(
    caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    broken = numbered({7, 8, 399}, workers=workers)
    with caplog.at_level(logging.WARNING):
        steps = [batch for epoch in (1, 2) for (batch,) in broken.epoch(epoch)]
    drawn = {
        (int(p), int(i)): int(x[0, 0, 0]) for b in steps for p, i, x in zip(b.passes, b.indices, b.images, strict=True)
    }
    assert len(drawn) == 800
    assert all(drawn[p, i] == {7: 9, 8: 9, 399: 0}.get(i, i % 256) for p, i in drawn)
    assert {int(b.labels[b.indices == 7]) for b in steps if (b.indices == 7).any()} == {9}
    assert {report for b in steps for report in b.unreadable} == {(f"photos/{i}.jpg", "cut off") for i in (7, 8, 399)}
    assert len(broken.unreadable) == 3
    assert sorted(record.args[0] for record in caplog.records if record.args) == sorted(broken.unreadable)
    broken.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_one_in_a_hundred_unreadable_stops(workers: int) -> None:
    assert len(list(numbered({1, 2, 3, 4}, workers=workers).epoch(1))) == 20
    broken = numbered({1, 2, 3, 4, 5}, workers=workers)
    with pytest.raises(
        UserError, match=r"5 of 400 images cannot be read so far, more than 1%; .*photos/\d\.jpg"
    ) as caught:
        list(broken.epoch(1))
    assert "\n" not in str(caught.value)
    broken.close()
    all_broken = numbered(set(range(400)), workers=workers)
    with pytest.raises(UserError, match="of 400 images cannot be read"):
        list(all_broken.epoch(1))
    all_broken.close()


def test_unreadable_files_of_a_real_folder_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(120):
        Image.fromarray(np.full((20, 20, 3), i, np.uint8)).save(tmp_path / f"{i:03}.png")
    (tmp_path / "050.png").write_bytes(b"not an image")
    folder = ImageFolder("train", root=str(tmp_path), holdout=0)
    files = TrainLoader(folder, TRANSFORM, EpochPlan(120, 40, seed=0), seed=0, workers=0)
    with caplog.at_level(logging.WARNING):
        reports = [report for epoch in (1, 2, 3) for (batch,) in files.epoch(epoch) for report in batch.unreadable]
    assert reports == [(str(tmp_path / "050.png"), "no image of a known format")] * 3  # one a pass, and one file
    assert len(files.unreadable) == 1
    assert caplog.text.count("050.png") == 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_goes_in_order_and_leaves_out_what_cannot_be_read(workers: int) -> None:
    dataset = Numbered(250, frozenset({3, 67}))
    batches = list(evaluation_batches(dataset, keep, batch_size=50, workers=workers, indices=range(220)))
    indices = torch.cat([batch.indices for batch in batches]).tolist()
    assert indices == [i for i in range(220) if i not in (3, 67)]
    assert torch.cat([batch.images[:, 0, 0, 0] for batch in batches]).tolist() == indices
    assert torch.cat([batch.labels for batch in batches]).tolist() == indices
    assert [len(batch) for batch in batches] == [49, 49, 50, 50, 20]
    assert not torch.cat([batch.passes for batch in batches]).any()
    with pytest.raises(UserError, match="3 of 250 images cannot be read"):
        list(evaluation_batches(Numbered(250, frozenset({3, 4, 5})), keep, batch_size=8, workers=workers))
    (few,) = evaluation_batches(dataset, keep, batch_size=70, workers=workers, indices=range(70))
    assert len(few) == 68  # a hundredth is of the data set: bad luck with a few images ends no training


def test_evaluation_reads_all_images_or_those_asked_for_and_knows_their_places() -> None:
    shapes, transform = Shapes("val", num_images=200), EvaluationTransform((16, 16))
    assert [len(batch) for batch in evaluation_batches(shapes, transform, batch_size=8)] == [8, 8, 4]
    (batch,) = evaluation_batches(shapes, transform, batch_size=8, indices=[17, 3, 11])
    assert batch.indices.tolist() == [17, 3, 11]
    assert batch.labels.tolist() == [shapes[index][1] for index in (17, 3, 11)]


@pytest.mark.parametrize("ending", [slow("SIGTERM"), *map(by_hand, ["SIGINT", "SIGHUP", "SIGUSR1"])])
def test_workers_outlive_a_signal_that_comes_while_they_start(ending: str) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal
        from perceptual_mae.data.loading import _EvaluationReader
        from perceptual_mae.data.shapes import Shapes
        from perceptual_mae.data.transforms import EvaluationTransform
        from perceptual_mae.data.workers import BatchSampler, ReadingNotes, begin, worker_loader

        signal.signal(signal.{ending}, lambda *_: None)
        schedule = BatchSampler()
        schedule.samples = ([(0, i)] for i in range(8))
        reader = _EvaluationReader(Shapes("train", num_images=8), EvaluationTransform((16, 16)))
        reader.notes = ReadingNotes(2)
        loader = worker_loader(reader, schedule, 2, persistent=True)
        batches = begin(loader, reader.notes)
        os.killpg(0, signal.{ending})
        print(sum(len(batch) for batch in batches))
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, start_new_session=True, check=False
    )
    assert (result.stderr, result.stdout) == ("", "8\n")


@pytest.mark.slow
def test_workers_of_a_single_pass_outlive_a_signal_too() -> None:
    """Held-out images are read by workers of their own, while a signal asks the run to save."""
    script = textwrap.dedent(
        """
        import os, signal, time
        from perceptual_mae.data.loading import evaluation_batches
        from perceptual_mae.data.shapes import Shapes
        from perceptual_mae.data.transforms import EvaluationTransform

        class Slow(Shapes):
            def __getitem__(self, index):
                time.sleep(0.05)
                return super().__getitem__(index)

        signal.signal(signal.SIGTERM, lambda *_: None)
        images, transform = Slow("train", num_images=40), EvaluationTransform((16, 16))
        batches = evaluation_batches(images, transform, batch_size=2, workers=2)
        seen = len(next(batches))
        os.killpg(0, signal.SIGTERM)
        print(seen + sum(len(batch) for batch in batches))
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, start_new_session=True, check=False
    )
    assert (result.stderr, result.stdout) == ("", "40\n")


@pytest.mark.parametrize("ending", [slow("raise"), slow("SIGTERM"), by_hand("SIGINT")])
def test_a_process_that_leaves_an_epoch_half_way_ends_at_once_and_quietly(ending: str) -> None:
    """As after Ctrl-C, which reaches the workers too: they live on while the main process finishes its step."""
    script = textwrap.dedent(
        f"""
        import os, signal, time
        from perceptual_mae.data.loading import EpochPlan, TrainLoader
        from perceptual_mae.data.shapes import Shapes
        from perceptual_mae.data.transforms import TrainTransform

        shapes = Shapes("train", num_images=400)
        loader = TrainLoader(shapes, TrainTransform((16, 16)), EpochPlan(400, 4, seed=0), seed=0, workers=2)
        steps = loader.epoch(1)
        next(steps)
        if {ending!r} == "raise":
            raise SystemExit(130)
        if {ending!r}.startswith("SIG"):
            asked = []
            signal.signal(signal.{ending if ending.startswith("SIG") else "SIGINT"}, lambda *_: asked.append(1))
            os.killpg(0, signal.{ending if ending.startswith("SIG") else "SIGINT"})
            for _ in range(20):
                next(steps)
            assert asked
        print("done")
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, start_new_session=True, check=False
    )
    assert result.stderr == ""
    assert (result.returncode, result.stdout) == ((130, "") if ending == "raise" else (0, "done\n"))


class Measured(Numbered):
    """Images of floats in [0, 1], of which one has a pixel that is not a number."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.full((3, 4, 4), index / 1000)
        image[0, 0, 0] = float("nan") if index == 7 else 0.0
        return image, index


@pytest.mark.parametrize("is_training", [True, False])
def test_an_image_of_floats_that_are_not_finite_is_named_at_the_door(
    is_training: bool, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, plan = Measured(400), EpochPlan(400, 20, seed=SEED)
    if is_training:
        batches = [step[0] for step in TrainLoader(dataset, keep, plan, seed=SEED, workers=0).epoch(1)]
    else:
        batches = list(evaluation_batches(dataset, keep, batch_size=20))
    assert all(bool(batch.images.isfinite().all()) for batch in batches)
    assert "image 7: 1 pixels are not finite" in caplog.text


@pytest.mark.slow
def test_a_batch_that_finds_no_room_in_shared_memory_ends_the_epoch_in_one_line() -> None:
    """Containers give /dev/shm 64 MB: torch drops such a batch, and whoever waits for it would wait for ever."""
    script = textwrap.dedent(
        """
        import resource
        from perceptual_mae.data.epoch_order import EpochPlan
        from perceptual_mae.data.loading import TrainLoader
        from perceptual_mae.data.shapes import Shapes
        from perceptual_mae.data.transforms import TrainTransform
        from perceptual_mae.errors import UserError

        shapes = Shapes("train", num_images=64, size=32)
        loader = TrainLoader(shapes, TrainTransform((32, 32)), EpochPlan(64, 8, seed=0), seed=0, workers=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # of this process and of workers that it starts
        try:
            list(loader.epoch(1))
        except UserError as mistake:
            print(f"one line: {mistake}", flush=True)
        """
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "one line: a data worker found no room in shared memory for a batch" in ran.stdout
    assert "data.workers=0" in ran.stdout
    assert "Traceback" not in ran.stderr
