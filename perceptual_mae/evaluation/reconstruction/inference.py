"""One pass over a split: every image is reconstructed once, under a mask of its own, for all accumulators."""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.loading import Batch, evaluation_batches
from perceptual_mae.evaluation.accumulators import Accumulator, ReconstructionBatch
from perceptual_mae.evaluation.finite import check_finite
from perceptual_mae.evaluation.processes import own_share
from perceptual_mae.evaluation.reconstruction.baselines import BASELINES
from perceptual_mae.generator.reconstruction import Reconstruction
from perceptual_mae.images import composite, mask_image
from perceptual_mae.progress import OnProgress, no_progress

Reconstruct = Callable[[Tensor, Tensor], Reconstruction]


@torch.no_grad()
def reconstruct_images(
    reconstruct: Reconstruct,
    dataset: ImageDataset,
    indices: Sequence[int],
    transform: Callable[[Tensor], Tensor],
    draw_masks: Callable[[Batch], Tensor],
    accelerator: Accelerator,
    accumulators: Sequence[Accumulator],
    *,
    batch_size: int,
    patch_size: int,
    workers: int = 0,
    baselines: bool = False,
    name: str = "reconstructions",
    on_progress: OnProgress = no_progress,
) -> None:
    """Reconstruct the images at `indices` of a data set and hand the batches to the accumulators.

    `draw_masks` gets batches whose indices are places in the data set: the mask of an image is the same whatever else
    is reconstructed. Process r of P takes every P-th batch from the r-th on, so that each image counts once, in the
    same batch as with one process. Unreadable images are logged and left out. Raises UserError where the generator's
    output is not finite.
    """
    share = own_share(indices, batch_size, accelerator)
    for batch in evaluation_batches(dataset, transform, batch_size=batch_size, workers=workers, indices=share):
        reconstructed = _reconstruct(
            reconstruct, batch, draw_masks(batch), accelerator, patch_size if baselines else None
        )
        for accumulator in accumulators:
            accumulator.update(reconstructed)
        done = accelerator.num_processes * (share.index(int(batch.indices[-1])) + 1)
        on_progress(name, min(done, len(indices)), len(indices))


def _reconstruct(
    reconstruct: Reconstruct, batch: Batch, mask: Tensor, accelerator: Accelerator, patch_size: int | None
) -> ReconstructionBatch:
    batch = batch.to(accelerator.device)
    originals = batch.images
    with accelerator.autocast():
        reconstruction = reconstruct(originals, mask)
    raw = check_finite(reconstruction.pyramid[0].float(), "reconstructions")
    raw, mask = raw.clamp(0, 1), reconstruction.mask
    hidden = mask_image(mask, reconstruction.grid, (originals.shape[2], originals.shape[3]))
    filled = {} if patch_size is None else {name: fill(originals, mask, patch_size) for name, fill in BASELINES.items()}
    return ReconstructionBatch(
        originals, raw, composite(originals, raw, hidden), mask, hidden, batch.indices, batch.labels, baselines=filled
    )
