"""One fine-tuning: all weights of a classifier learn from labels, on whole images; the last epoch is what counts."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from perceptual_mae.data.batch import Batch
from perceptual_mae.data.draws import DropPathMasks
from perceptual_mae.data.loading import EpochPlan, TrainLoader, evaluation_batches
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.finetuning.augmentation import FinetuneTransform, Mixing
from perceptual_mae.evaluation.finetuning.classifier import Classifier
from perceptual_mae.evaluation.finetuning.recipes import FinetuneRecipe
from perceptual_mae.evaluation.finite import check_finite
from perceptual_mae.evaluation.labelled_data import LabelledData
from perceptual_mae.evaluation.resumption import ResumableTrainings
from perceptual_mae.generator.encoder import NO_WEIGHT_DECAY
from perceptual_mae.progress import OnProgress, no_progress
from perceptual_mae.schedules import learning_rate, set_learning_rate

BATCH_SIZE = 128
TOP = 5


def train_classifier(
    classifier: Classifier,
    data: LabelledData,
    recipe: FinetuneRecipe,
    accelerator: Accelerator,
    *,
    seed: int = 0,
    name: str = "fine-tuning",
    trainings: ResumableTrainings | None = None,
    on_progress: OnProgress = no_progress,
) -> list[dict[str, float]]:
    """Train a classifier in place; return each epoch's mean training loss and last learning rate.

    Order, augmentation, mixing and drop-path masks are functions of the seed, the step and the image: two processes see
    the batches that one sees, and a training that `trainings` has under this name goes on as if it had never stopped.
    Raises UserError where the loss is no longer finite, Interrupted where `trainings` was stopped.
    """
    trainings = trainings or ResumableTrainings(accelerator)
    encoder = classifier.encoder
    loader = TrainLoader(
        data.train,
        FinetuneTransform(data.transform.size, encoder.mean, encoder.std, recipe),
        EpochPlan(len(data.train), recipe.batch_size, seed=seed),
        seed=seed,
        workers=data.workers,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        accumulation=recipe.accumulation,
    )
    optimizer = finetuning_optimizer(
        classifier, betas=recipe.betas, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay
    )
    network, optimizer = accelerator.prepare(classifier, optimizer)
    drops = DropPathMasks(recipe.drop_path, len(encoder.blocks), seed) if recipe.drop_path else None
    mixing = Mixing(recipe, data.num_classes, seed) if recipe.mixes else None
    per_epoch = loader.plan.steps_per_epoch
    warmup, total = round(recipe.warmup_epochs * per_epoch), recipe.epochs * per_epoch
    trained = {"classifier": classifier, "optimizer": optimizer}
    kept = trainings.begin(name)
    trainings.load(trained)
    step: int = kept.get("step", 0)
    curve: list[dict[str, float]] = kept.get("curve", [])
    loss = own_loss(kept.get("losses", [0.0]), accelerator)  # of this process, summed over the steps of an epoch
    on_progress(name, step, total)
    network.train()
    try:
        while step < total:
            epoch, first = step // per_epoch + 1, step % per_epoch
            for batches in loader.epoch(epoch, first):
                rate = learning_rate(
                    step, peak=recipe.peak_rate, floor=recipe.min_lr, warmup_steps=warmup, total_steps=total
                )
                set_learning_rate(optimizer, rate)
                for batch in batches:
                    drop_path_masks = drops(batch) if drops is not None else None
                    quiet = batch is not batches[-1]
                    with accelerator.no_sync(network) if quiet else nullcontext():
                        part = training_loss(
                            network, batch.to(accelerator.device), drop_path_masks, recipe, mixing, step
                        ) / len(batches)
                        accelerator.backward(part)
                    loss.add_(part.detach())
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                if step % per_epoch == 0:
                    mean = float(accelerator.reduce(loss, reduction="mean")) / per_epoch
                    if not math.isfinite(mean):
                        trainings.discard()
                        raise UserError(
                            f"the training loss is not finite in epoch {epoch}; lower the rate (it is "
                            f"{recipe.peak_rate:g} at its peak): --set lr=..."
                        )
                    curve.append({"epoch": epoch, "train_loss": round(mean, 5), "lr": rate})
                    loss.zero_()
                on_progress(name, step, total)
                trainings.after_step(
                    step, total, trained, lambda: {"curve": curve, "losses": accelerator.gather(loss[None]).tolist()}
                )
    finally:
        loader.close()
        accelerator.free_memory()  # or it would keep the network and the optimiser of every seed
    return curve


def own_loss(losses: Sequence[float], accelerator: Accelerator) -> Tensor:
    """Return this process's part of the losses that were kept, their mean where another number of processes kept them.

    A scalar on the device.
    """
    is_same = len(losses) == accelerator.num_processes
    kept = losses[accelerator.process_index] if is_same else sum(losses) / len(losses)
    return torch.tensor(kept, device=accelerator.device)


@torch.no_grad()
def score_classifier(
    classifier: Classifier,
    data: LabelledData,
    accelerator: Accelerator,
    *,
    name: str = "test",
    on_progress: OnProgress = no_progress,
) -> dict[str, Any]:
    """Return top-1 and, with more than five classes, top-5 accuracy in [0, 1], and the number of images that counted.

    Process r of P scores every P-th image from the r-th on: each counts once, and nothing is padded.
    """
    classifier.eval()
    processes, rank = accelerator.num_processes, accelerator.process_index
    share = range(rank, len(data.test), processes)
    right = torch.zeros(3, dtype=torch.int64, device=accelerator.device)  # top-1, top-5, all
    done = 0
    batches = evaluation_batches(data.test, data.transform, batch_size=BATCH_SIZE, workers=data.workers, indices=share)
    for batch in batches:
        moved = batch.to(accelerator.device)
        right += count_right(check_finite(classifier(moved.images).float(), "logits"), moved.labels)
        done += len(batch)
        on_progress(name, min(done * processes, len(data.test)), len(data.test))
    top1, top5, images = accelerator.reduce(right, reduction="sum").tolist()
    if not images:
        raise UserError("no image of those to be scored can be read; look at the files, or name others with --data")
    scores = {"top1": round(top1 / images, 5), "images": images}
    return scores | ({"top5": round(top5 / images, 5)} if data.num_classes > TOP else {})


def count_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many labels (B,) are the first of logits (B, classes), how many among the first five, and B."""
    best = logits.topk(min(TOP, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([best[:, 0].sum(), best.sum(), torch.tensor(len(labels), device=best.device)])


def check_batch(recipe: FinetuneRecipe, num_images: int, processes: int) -> None:
    """Refuse a batch that the images do not fill, or that cannot be shared equally; before anything is trained."""
    batch_size, parts = recipe.batch_size, processes * recipe.accumulation
    if num_images < batch_size:
        raise UserError(
            f"{num_images} training images do not fill one batch of {batch_size}; lower it with --batch-size"
        )
    if batch_size % (parts * (2 if recipe.mixes else 1)):
        pairs = " of pairs of images (mixup and cutmix mix them)" if recipe.mixes else ""
        raise UserError(
            f"--batch-size: {batch_size} does not fall into {processes} process(es) x {recipe.accumulation} "
            f"micro-batch(es){pairs}; change it or --set accumulation"
        )


def training_loss(
    network: nn.Module,
    batch: Batch,
    drop_path_masks: Tensor | None,
    recipe: FinetuneRecipe,
    mixing: Mixing | None,
    step: int,
) -> Tensor:
    """Return the mean cross-entropy of a micro-batch at a step: with smoothed labels, mixed where `mixing` is given."""
    images, targets, smoothing = batch.images, batch.labels, recipe.smoothing
    if mixing is not None:
        images, targets = mixing(images, targets, step)
        smoothing = 0.0  # it is in the targets
    logits = network(images, None if drop_path_masks is None else drop_path_masks.to(images.device))
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)


def finetuning_optimizer(
    classifier: nn.Module, *, betas: Sequence[float], weight_decay: float, layer_decay: float
) -> AdamW:
    """Return AdamW whose rate shrinks by `layer_decay` a layer from the head down (BEiT, MAE); none decays as above.

    timm makes the groups by the classifier's `group_matcher`. It writes `lr_scale` into them, which no optimiser of
    torch's reads: the rates are right only where `set_learning_rate` sets them.
    """
    from timm.optim import param_groups_layer_decay

    spared = [name for name, _ in classifier.named_parameters() if name.rpartition(".")[2] in NO_WEIGHT_DECAY]
    groups = param_groups_layer_decay(
        classifier, weight_decay=weight_decay, no_weight_decay_list=spared, layer_decay=layer_decay
    )
    return AdamW(groups, lr=0.0, betas=(float(betas[0]), float(betas[1])), fused=True)
