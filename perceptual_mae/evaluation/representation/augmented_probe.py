"""A linear probe trained on augmented images, with the settings of a published recipe and nothing chosen.

The encoder is frozen and sees whole images. All processes compute features of their share of a batch, gather them and
take the same step of the same small head: the BatchNorm sees the whole batch, whatever the number of processes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from perceptual_mae.data.loading import Batch, EpochPlan, TrainLoader
from perceptual_mae.data.transforms import TrainTransform
from perceptual_mae.evaluation.finite import check_finite
from perceptual_mae.evaluation.labelled_data import LabelledData
from perceptual_mae.evaluation.representation.features import Extractor, Features
from perceptual_mae.evaluation.representation.probe_head import ProbeHead, accuracies, lars
from perceptual_mae.evaluation.resumption import ResumableTrainings
from perceptual_mae.progress import OnProgress, no_progress
from perceptual_mae.schedules import learning_rate, set_learning_rate

IMAGES_AT_ONCE = 512
IMAGENET_STEPS = 78
"""Steps of an epoch of 1,281,167 images at MAE's batch of 16,384."""
CROP_SCALE = (0.08, 1.0)
LOST_SHARE = 0.02


@dataclass(frozen=True)
class Recipe:
    """A published way to train a probe: `rate` is the peak at `usual_batch`, in proportion to the batch if `scaled`."""

    optimizer: Callable[[list[Tensor]], Optimizer]
    rate: float
    scaled: bool
    warmup_epochs: int
    usual_batch: Callable[[int], int]
    crop: Literal["clamped", "random_resized"]
    epochs: int = 90

    def peak_rate(self, batch_size: int, num_images: int) -> float:
        """Return the peak learning rate for batches of this size."""
        return self.rate * batch_size / self.usual_batch(num_images) if self.scaled else self.rate

    def transform(self, data: LabelledData) -> TrainTransform:
        """Return the augmentation: a part of 8 to 100% of the image, flipped half the time."""
        return TrainTransform(data.transform.size, crop=self.crop, crop_scale=CROP_SCALE)


def mae_batch_size(num_images: int) -> int:
    """Return 16,384, or for smaller sets than ImageNet the power of two that gives an epoch about as many steps.

    A LARS step moves weights by a share of their norm, whatever the batch: it is the steps and the peak rate of 6.4
    that make the published training. At 0.1 for each 256 images a head on a small set would hardly move.
    """
    power = max(1, num_images // IMAGENET_STEPS).bit_length() - 1
    return min(16384, max(16, 1 << power))


RECIPES = {
    # MAE's linear probe: LARS without weight decay, 6.4 at a batch of 16,384, 10 of 90 epochs of warm-up.
    "mae": Recipe(lars, 6.4, True, 10, mae_batch_size, "clamped"),
    # The Perceptual MAE paper describes its fine-tuning only; these are its settings, with MAE's epochs.
    "paper": Recipe(
        lambda weights: torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.95), weight_decay=0.05),
        1e-3,
        False,
        5,
        lambda num_images: 16,
        "random_resized",
    ),
}


def train_probe(
    extractor: Extractor,
    data: LabelledData,
    recipe: Recipe,
    accelerator: Accelerator,
    *,
    seed: int = 0,
    epochs: int,
    batch_size: int,
    name: str = "probe",
    trainings: ResumableTrainings | None = None,
    on_progress: OnProgress = no_progress,
) -> dict[str, ProbeHead]:
    """Return a trained head for each feature that the extractor names; warm-up shortens with the epochs.

    A batch is read in parts of at most 512 images; batches below that are cut from one part. Order and augmentation are
    functions of the seed, the epoch and the image: a training that `trainings` has under this name goes on as if it had
    never stopped. Raises Interrupted where `trainings` was stopped.
    """
    trainings = trainings or ResumableTrainings(accelerator)
    batch_size = min(batch_size, len(data.train))
    processes = accelerator.num_processes
    at_once, parts = _shares(batch_size, len(data.train), processes)
    loader = TrainLoader(
        data.train,
        recipe.transform(data),
        EpochPlan(len(data.train), at_once, seed=seed),
        seed=seed,
        workers=data.workers,
        num_processes=processes,
        process_index=accelerator.process_index,
        accumulation=parts,
    )
    cuts = at_once // batch_size
    steps_per_epoch = loader.plan.steps_per_epoch * cuts
    warmup, total = round(recipe.warmup_epochs * epochs / recipe.epochs * steps_per_epoch), epochs * steps_per_epoch
    kept = trainings.begin(name)
    step: int = kept.get("step", 0)
    heads: dict[str, ProbeHead] = {}
    optimizers: dict[str, Optimizer] = {}
    trained: dict[str, ProbeHead | Optimizer] = {}

    def build_heads(widths: Mapping[str, int]) -> None:
        for key, width in widths.items():
            heads[key] = ProbeHead(width, data.num_classes, seed=seed).to(accelerator.device).train()
            optimizers[key] = recipe.optimizer(list(heads[key].parameters()))
            trained.update({key: heads[key], f"{key} optimizer": optimizers[key]})

    build_heads(kept.get("widths", {}))
    trainings.load(trained)
    on_progress(name, step, total)
    try:
        while step < total:
            epoch, first_call = step // steps_per_epoch + 1, step % steps_per_epoch // cuts
            for read in loader.epoch(epoch, first_call):
                features, labels = _features_of(read, extractor, accelerator)
                if not heads:
                    build_heads({key: value.shape[1] for key, value in features.items()})
                for first in range(0, at_once, batch_size):
                    rate = learning_rate(
                        step,
                        peak=recipe.peak_rate(batch_size, len(data.train)),
                        floor=0.0,
                        warmup_steps=warmup,
                        total_steps=total,
                    )
                    rows = slice(first, first + batch_size)
                    for key, head in heads.items():
                        _step(head, optimizers[key], features[key][rows], labels[rows], rate)
                    step += 1
                on_progress(name, step, total)
                trainings.after_step(step, total, trained, lambda: {"widths": _widths(heads)})
    finally:
        loader.close()
    return {key: head.eval() for key, head in heads.items()}


def _widths(heads: Mapping[str, ProbeHead]) -> dict[str, int]:
    return {key: head.norm.num_features for key, head in heads.items()}


def score_heads(heads: dict[str, ProbeHead], test: Features) -> dict[str, float]:
    """Return each head's top-1 accuracy in [0, 1] on the test features of its name."""
    scores = {}
    for name, head in heads.items():
        device = next(head.parameters()).device
        scores[name] = accuracies(head, test.named[name].to(device), test.labels.to(device))[0][0]
    return scores


def _shares(batch_size: int, num_images: int, processes: int) -> tuple[int, int]:
    """Return how many images one call of the loader reads, whole batches all, and in how many parts.

    Reading several small batches at once may cost an epoch 2% of its images: the last ones that fill no call.
    """
    if batch_size > IMAGES_AT_ONCE:
        parts = -(-batch_size // (IMAGES_AT_ONCE * processes))
        while batch_size % (parts * processes) and parts < batch_size:
            parts += 1
        return batch_size, parts
    steps = num_images // batch_size
    fitting = (
        count
        for count in range(min(steps, IMAGES_AT_ONCE // batch_size), 0, -1)
        if steps % count <= LOST_SHARE * steps and count * batch_size % processes == 0
    )
    return batch_size * next(fitting, 1), 1


@torch.no_grad()
def _features_of(
    batches: list[Batch], extractor: Extractor, accelerator: Accelerator
) -> tuple[dict[str, Tensor], Tensor]:
    """Return features and labels of the images of all processes, in the order of the plan."""
    pieces = []
    for batch in batches:
        batch = batch.to(accelerator.device)
        with accelerator.autocast():
            extracted = extractor(batch.images)
        pieces.append(({key: check_finite(value, "features") for key, value in extracted.items()}, batch.labels))
    named = {key: _in_order([extracted[key].float() for extracted, _ in pieces], accelerator) for key in pieces[0][0]}
    return named, _in_order([labels for _, labels in pieces], accelerator)


def _in_order(parts: list[Tensor], accelerator: Accelerator) -> Tensor:
    """Undo the loader's strides: part a of process r holds every (processes x parts)-th image from (r, a) on."""
    gathered: Tensor = accelerator.gather(torch.stack(parts))
    return gathered.transpose(0, 1).flatten(0, 1)


def _step(head: ProbeHead, optimizer: Optimizer, features: Tensor, labels: Tensor, rate: float) -> None:
    optimizer.zero_grad()
    F.cross_entropy(head(features)[0], labels).backward()  # type: ignore[no-untyped-call]
    set_learning_rate(optimizer, rate)
    optimizer.step()
