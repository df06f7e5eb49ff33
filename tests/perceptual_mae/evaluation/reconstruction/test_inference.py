"""One pass over the images: each once, under the mask of its place in the data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from conftest import debug_config
from perceptual_mae.config import build
from perceptual_mae.data.decoding import UnreadableImageError
from perceptual_mae.data.transforms import EvaluationTransform
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.accumulators import Gather, ReconstructionBatch
from perceptual_mae.evaluation.reconstruction.inference import reconstruct_images
from perceptual_mae.generator.reconstruction import Reconstruction
from processes import run_two_processes

GRID = (4, 4)


class Numbered:
    """Grey images whose brightness tells their index; those of `broken` cannot be read."""

    classes = ()

    def __init__(self, count: int, broken: frozenset[int] = frozenset()) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in self.broken:
            raise UnreadableImageError(f"photos/{index}.jpg", "cut off")
        return torch.full((3, 32, 32), index, dtype=torch.uint8), -1


class Memory:
    """An accumulator that keeps what it was shown, by index."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.masks: dict[int, list[bool]] = {}
        self.batches: list[ReconstructionBatch] = []

    def update(self, seen: ReconstructionBatch) -> None:
        self.indices += seen.indices.tolist()
        self.masks |= dict(zip(seen.indices.tolist(), seen.mask.tolist(), strict=True))
        self.batches.append(seen)

    def compute(self, gather: Gather) -> Mapping[str, Any]:
        return {}


def outside(images: Tensor, mask: Tensor) -> Reconstruction:
    """A generator that leaves the range."""
    return Reconstruction(
        (2 * images - 0.5,), (images,), mask=mask, tokens=torch.zeros(1), latent=torch.zeros(1), grid=GRID
    )


def perform(
    dataset: Numbered, indices: Sequence[int], batch_size: int = 3, seed: int = 0, ratio: float = 0.5, **more: Any
) -> Memory:
    memory = Memory()
    masks = build.build_fixed_masks(debug_config("mse").masking, GRID, seed, ratio)
    options = {"batch_size": batch_size, "patch_size": 8, **more}
    reconstruct_images(
        options.pop("reconstruct", outside),
        dataset,
        indices,
        EvaluationTransform((32, 32)),
        masks,
        Accelerator(cpu=True),
        [memory],
        **options,
    )
    return memory


def test_masks_depend_on_the_image_alone_not_on_batches_or_limits() -> None:
    whole = perform(Numbered(20), range(20), batch_size=20)
    assert whole.indices == list(range(20))
    assert len({tuple(mask) for mask in whole.masks.values()}) > 10
    for batch_size in (1, 7):
        assert perform(Numbered(20), range(20), batch_size).masks == whole.masks
    part = perform(Numbered(20), [2, 3, 11, 19], batch_size=3)
    assert part.masks == {index: whole.masks[index] for index in (2, 3, 11, 19)}
    assert perform(Numbered(20), range(20)).masks == whole.masks
    assert perform(Numbered(20), range(20), seed=1).masks != whole.masks
    assert {sum(mask) for mask in perform(Numbered(20), range(20), ratio=0.75).masks.values()} == {12}


def test_accumulators_get_clamped_images_and_originals_where_nothing_is_hidden() -> None:
    for seen in perform(Numbered(200), [0, 50, 199]).batches:
        assert seen.originals.dtype == seen.raw.dtype == seen.composite.dtype == torch.float32
        assert [round(255 * float(image.mean())) for image in seen.originals] == seen.indices.tolist()
        torch.testing.assert_close(seen.raw, (2 * seen.originals - 0.5).clamp(0, 1))
        assert seen.hidden.shape == (len(seen.indices), 1, 32, 32)
        hidden = seen.hidden.bool().expand_as(seen.raw)
        assert torch.equal(seen.composite[hidden], seen.raw[hidden])
        assert torch.equal(seen.composite[~hidden], seen.originals[~hidden])
        assert torch.equal(seen.hidden[:, 0, ::8, ::8].flatten(1).bool(), seen.mask)


def test_unreadable_images_are_left_out_and_do_not_move_the_others() -> None:
    whole, broken = perform(Numbered(9), range(9)), perform(Numbered(9, frozenset({4})), range(9))
    assert broken.indices == [0, 1, 2, 3, 5, 6, 7, 8]
    assert broken.masks == {index: mask for index, mask in whole.masks.items() if index != 4}


def test_baselines_are_made_only_when_asked_for() -> None:
    assert not perform(Numbered(2), range(2)).batches[0].baselines
    filled = perform(Numbered(2), range(2), baselines=True).batches[0].baselines
    assert list(filled) == ["mean_color", "nearest_patch", "inverse_distance"]


def test_an_output_that_is_not_finite_stops_with_what_to_do() -> None:
    def broken(images: Tensor, mask: Tensor) -> Reconstruction:
        return Reconstruction(
            (images / 0,), (images,), mask=mask, tokens=torch.zeros(1), latent=torch.zeros(1), grid=GRID
        )

    with pytest.raises(UserError, match=r"are not finite: .*; score an earlier checkpoint"):
        perform(Numbered(2), range(2), reconstruct=broken)


def test_progress_is_reported_to_the_end() -> None:
    reported: list[tuple[str, int, int]] = []
    perform(Numbered(7), range(7), name="test", on_progress=lambda *heard: reported.append(heard))
    assert reported == [("test", 3, 7), ("test", 6, 7), ("test", 7, 7)]


TWO_PROCESSES = """
import torch
from accelerate import Accelerator
from perceptual_mae.evaluation.accumulators import Gather
from test_inference import Numbered, perform

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
gather = Gather(accelerator)
for count in (1, 3, 7, 12):
    memory = perform(Numbered(count), range(count))
    values = torch.tensor([[float(index)] for index in memory.indices]).view(-1, 1)
    indices, rows = gather.rows(torch.tensor(memory.indices, dtype=torch.int64), values)
    expected = list(range(count)) if accelerator.is_main_process else []
    assert indices.tolist() == expected, indices
    assert rows.flatten().tolist() == expected, rows
    assert float(gather.total(values.sum().double())) == sum(range(count))
print("agreed", flush=True)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_see_each_image_once(tmp_path: Path) -> None:
    script = tmp_path / "both.py"
    script.write_text(TWO_PROCESSES)
    assert run_two_processes(script).stdout.count("agreed") == 2
