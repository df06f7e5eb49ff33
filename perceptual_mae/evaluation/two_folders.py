"""Two folders of images, A and B, scored against each other by the measures of `pmae evaluate`.

Scores of pairs (PSNR, SSIM, LPIPS and others) are of images whose names pair up; FID, KID and the Inception Score are
of all images, A against B.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from perceptual_mae.data.dataset import files_sha256
from perceptual_mae.data.image_files import ImageFiles, check_any, header_sizes
from perceptual_mae.data.loading import Batch, evaluation_batches
from perceptual_mae.data.transforms import EvaluationTransform
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.accumulators import Accumulator, Gather, merge_into
from perceptual_mae.evaluation.image_pairs import A, B, check_sizes, pair_up
from perceptual_mae.evaluation.metrics import METRICS
from perceptual_mae.evaluation.metrics.distribution import Distribution
from perceptual_mae.evaluation.metrics.protocol import ImageMetric, SetMetric, Setting
from perceptual_mae.evaluation.metrics.selection import Chosen, check_required, choose, find_weights, names_of
from perceptual_mae.evaluation.processes import own_share
from perceptual_mae.evaluation.reconstruction.per_image import ImageScores, ImageTable
from perceptual_mae.images import Size
from perceptual_mae.progress import OnProgress, no_progress
from perceptual_mae.run.folder import version_of

PAIRS = "pairs"
TABLE = {name: line for name, line in METRICS.items() if name != "patch_std"}
"""All scores but the one that is of a run's patches."""
IMAGES_AT_ONCE = 64
PIXELS_AT_ONCE = 1 << 20
"""Of one folder's images in a batch: 16 of 256x256, or one photograph."""
VERSIONS = ("perceptual-mae", "torch", "torchvision")
NO_PAIRS = "no image of A has the name of one of B"


@dataclass(frozen=True)
class FolderScores:
    """The report, and the scores of each pair by the place of its image in A; only the main process has all of it."""

    report: dict[str, Any]
    table: ImageTable | None


@torch.no_grad()
def compare_folders(
    first: ImageFiles,
    second: ImageFiles,
    accelerator: Accelerator,
    *,
    size: Size | None = None,
    metrics: str | None = None,
    require: Sequence[str] = (),
    features: Sequence[str] = (),
    seed: int = 0,
    trust_code: bool = False,
    on_progress: OnProgress = no_progress,
) -> FolderScores:
    """Score the images of `first`, A, against those of `second`, B, in float32; each is decoded once.

    size: all images are scaled until they just cover it, and cropped in the middle (None: they stay as they are).
    `metrics`, `require`, `features` and `trust_code` are those of `evaluate_run`; the seed is that of KID's subsets and
    of shuffles. Unreadable images are logged and left out. Raises UserError, before any image is decoded, where a
    required score cannot be had, or none can, where two images have one name, and where those of a pair differ in size.
    """
    names = names_of(metrics, TABLE)
    check_required(require, TABLE)
    is_paired = any(isinstance(TABLE[name], ImageMetric) for name in (*names, *require))
    by_place = pair_up(first.names, second.names) if is_paired else {}
    stored = [header_sizes(first), header_sizes(second)]
    for folder, known in zip((first, second), stored, strict=True):
        check_any(folder, sum(each is not None for each in known))
    if size is None:
        check_sizes(first, second, by_place, stored)
    pairs = {one: len(first) + other for one, other in by_place.items()}  # images of B come after those of A
    sizes = [*stored[0], *stored[1]] if size is None else [size] * (len(first) + len(second))
    setting = Setting(
        (1, 1),  # see `_choose`
        3,
        accelerator.device,
        min(len(first), len(second)),
        find_weights,
        patch_size=1,
        seed=seed,
        features=tuple(features),
        trust_code=trust_code,
        sets=(A, B),
        reference="the images of B",
    )
    chosen = _choose(names, require, pairs, sizes, setting)
    sets = [each for each in chosen.accumulators if isinstance(each, Distribution) and each.networks]
    if not chosen.measures and not sets:
        reasons = [f"{name} {reason}" for name, reason in chosen.unavailable.items()]
        raise UserError(f"nothing can be scored: {'; '.join([NO_PAIRS] * (is_paired and not pairs) + reasons[:1])}")

    files = ImageFiles(
        [*first.paths, *second.paths], [*first.names, *second.names], sizes=sizes if size is None else None
    )
    pairs = pairs if chosen.measures else {}
    groups = [[index for pair in pairs.items() for index in pair]]
    groups += [sorted({*range(len(files))} - {*groups[0]})] if sets else []
    scores = ImageScores(chosen.measures)
    read = torch.zeros(2, dtype=torch.float64)  # images of A and of B
    for indices, partners in zip(groups, (2, 1), strict=False):
        batch_size = partners * _images_at_once([sizes[index] for index in indices])
        for batch in evaluation_batches(
            files,
            _unchanged if size is None else EvaluationTransform(size),
            batch_size=batch_size,
            indices=own_share(indices, batch_size, accelerator),
        ):
            read += _score(batch.to(accelerator.device), len(first), pairs, scores, sets)
            done = accelerator.num_processes * int(read.sum())
            on_progress("images", min(done, sum(map(len, groups))), sum(map(len, groups)))

    gather = Gather(accelerator)
    numbers = [int(number) for number in gather.total(read).tolist()]
    num_pairs = int(gather.total(torch.tensor(scores.num_images, dtype=torch.float64)))
    in_second = sum(index >= len(first) for indices in groups for index in indices)
    planned = (sum(map(len, groups)) - in_second, in_second)
    report: dict[str, Any] = {"kind": "compare-images"}
    for name, folder, number, all_images in zip((A, B), (first, second), numbers, planned, strict=True):
        check_any(folder, number)
        report[name] = _describe_folder(folder, number, all_images)
    report |= {"pairs": num_pairs if is_paired else None, **_describe_sizes([*stored[0], *stored[1]], size)}
    report |= {"seed": seed, "networks": chosen.networks, "feature_networks": {}, "scores": {}}
    report |= {"unavailable": chosen.unavailable}
    everything: list[Accumulator] = [scores, *sets]
    for accumulator in everything:
        merge_into(report, accumulator.compute(gather))
    report["versions"] = {name: version_of(name) for name in VERSIONS} | chosen.versions
    return FolderScores(report, scores.table)


def _choose(
    names: Sequence[str],
    require: Sequence[str],
    pairs: Mapping[int, int],
    sizes: Sequence[Size | None],
    setting: Setting,
) -> Chosen:
    """Prepare the scores of pairs for the sizes of images that pair up, and those of sets for the sizes of all."""
    if not pairs and (needed := [name for name in require if isinstance(TABLE[name], ImageMetric)]):
        raise UserError(f"--require: {needed[0]} is of pairs, and {NO_PAIRS}; give an image and its partner one name")
    chosen = Chosen()
    for kind, indices in ((ImageMetric, [*pairs, *pairs.values()]), (SetMetric, range(len(sizes)))):
        known = {size for index in indices if (size := sizes[index]) is not None}
        wanted, required = ([name for name in some if isinstance(TABLE[name], kind)] for some in (names, require))
        if not known:
            continue
        smallest = (min(height for height, _ in known), min(width for _, width in known))
        part = choose(wanted, required, replace(setting, size=smallest, mixed_sizes=len(known) > 1), TABLE)
        chosen = Chosen(
            chosen.measures | part.measures,
            chosen.accumulators + part.accumulators,
            chosen.unavailable | part.unavailable,
            chosen.networks | part.networks,
            chosen.versions | part.versions,
        )
    return chosen


def _score(
    batch: Batch, start_of_second: int, pairs: Mapping[int, int], scores: ImageScores, sets: Sequence[Distribution]
) -> Tensor:
    """Score a batch of images of both folders; return how many of each it has, float64 (2,)."""
    is_second = batch.indices >= start_of_second
    for name, rows in ((A, ~is_second), (B, is_second)):
        for each in sets:
            each.add(name, batch.indices[rows], batch.images[rows.to(batch.images.device)])
    row_of = {index: row for row, index in enumerate(batch.indices.tolist())}
    both = [(row, row_of[pairs[index]]) for index, row in row_of.items() if pairs.get(index) in row_of]
    if both:
        rows_of_first, rows_of_second = (list(rows) for rows in zip(*both, strict=True))
        compared = [(PAIRS, batch.images[rows_of_first])]
        scores.add(batch.indices[rows_of_first], batch.images[rows_of_second], compared)
    return torch.tensor([int((~is_second).sum()), int(is_second.sum())], dtype=torch.float64)


def _images_at_once(sizes: Sequence[Size | None]) -> int:
    """Return how many images of a folder a batch has: those of a batch have one size."""
    known = {size for size in sizes if size is not None}
    if len(known) != 1:
        return 1
    ((height, width),) = known
    return min(IMAGES_AT_ONCE, max(1, PIXELS_AT_ONCE // (height * width)))


def _describe_folder(folder: ImageFiles, num_images: int, planned: int) -> dict[str, Any]:
    return {
        "folder": None if folder.listing is None else str(folder.listing.folder),
        "files": len(folder),
        "files_sha256": files_sha256(folder),
        "num_images": num_images,
        "unreadable_images": planned - num_images,
    }


def _describe_sizes(stored: Sequence[Size | None], size: Size | None) -> dict[str, Any]:
    """Return which sizes the files have, and what was done to the images."""
    known = [each for each in stored if each is not None]
    sides = list(zip(*known, strict=True))
    described: dict[str, Any] = {"smallest_sides": [*map(min, sides)], "largest_sides": [*map(max, sides)]}
    if size is None:
        return {"sizes": described, "transform": None}
    transform = {"image_size": list(size), "resize": None, "crop": "center"}
    return {"sizes": described, "transform": transform, "changed_images": sum(each != size for each in known)}


def _unchanged(image: Tensor) -> Tensor:
    return image
