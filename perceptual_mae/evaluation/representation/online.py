"""A run's encoder scored while it trains: the spectrum of its features and, where there are labels, what they tell.

Features are the mean of the patch tokens of whole images. Nothing here touches the training: no gradient reaches the
encoder, no random number is drawn from a stream that others use, and no module changes its mode.
"""

import logging
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.subsets import Selection, limited
from perceptual_mae.data.transforms import EvaluationTransform
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.labelled_data import labelled_part
from perceptual_mae.evaluation.reconstruction.data import HeldOut
from perceptual_mae.evaluation.representation.features import Extractor, Features, extract_features
from perceptual_mae.evaluation.representation.knn import knn_accuracies
from perceptual_mae.evaluation.representation.linear_probe import linear_probe
from perceptual_mae.evaluation.representation.spectrum import spectrum_scores

logger = logging.getLogger(__name__)

NEIGHBOURS = 20
PENALTY = 1e-3
"""The one strength of the probe's L2 penalty that is tried. Ours."""

OnlineScores = dict[str, float | None]


@dataclass(frozen=True)
class OnlineData:
    """The images whose features are scored; `train`, with labels, only where there are enough for a probe."""

    held_out: ImageDataset
    train: ImageDataset | None
    transform: EvaluationTransform
    workers: int


def open_online(config: RunConfig, train: ImageDataset, held_out: HeldOut) -> OnlineData:
    """Return a run's held-out images, and the labelled training images that a probe of them is fitted on.

    These are the first `evaluation.probe_images` of a fixed shuffle of `train`, or of the data set's labelled part.
    There are none where they would be fewer than 20, or where the held-out images have no classes, or others.
    """
    images = Selection(held_out.dataset, held_out.indices)
    labelled = _labelled(config, train) if config.evaluation.probe_images and len(images.classes) > 1 else None
    if labelled is not None:
        labelled = limited(labelled, config.evaluation.probe_images)
        if labelled.classes != images.classes or len(labelled) < NEIGHBOURS:
            labelled = None
    return OnlineData(images, labelled, held_out.transform, held_out.workers)


def score_online(extractor: Extractor, data: OnlineData, accelerator: Accelerator, *, batch_size: int) -> OnlineScores:
    """Return RankMe and alpha-ReQ of held-out images' features, and where there are labels top-1 accuracies on them.

    `extractor` names one feature. `probe` is that of a linear probe with one penalty, `knn` that of 20 neighbours,
    both in [0, 1]. With several processes only the main one has scores. Scores are None where fewer than two images
    could be read.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():  # the head's modules draw before they are set
        train = None
        held_out = _features(extractor, data.held_out, data, accelerator, batch_size)
        if data.train is not None:
            train = _features(extractor, data.train, data, accelerator, batch_size)
        if not accelerator.is_main_process:
            return {}
        (features,) = held_out.named.values()
        scores: OnlineScores = {"rankme": None, "alpha_req": None}
        if len(features) > 1:
            scores |= spectrum_scores(features)
        if train is None or len(train.labels) < NEIGHBOURS:
            return scores
        device = accelerator.device
        parts = [tensor.to(device) for part in (train, held_out) for tensor in (*part.named.values(), part.labels)]
        probe = linear_probe(*parts, num_classes=len(data.held_out.classes), candidates=(PENALTY,))
        neighbours = knn_accuracies(*parts, neighbours=(NEIGHBOURS,))
        return scores | {"probe": round(probe.accuracy, 5), "knn": round(neighbours[NEIGHBOURS], 5)}


def _features(
    extractor: Extractor, images: ImageDataset, data: OnlineData, accelerator: Accelerator, batch_size: int
) -> Features:
    return extract_features(
        extractor,
        images,
        data.transform,
        accelerator,
        batch_size=batch_size,
        workers=data.workers,
        needs_labels=data.train is not None,
    )


def _labelled(config: RunConfig, train: ImageDataset) -> ImageDataset | None:
    """Return labelled training images: those of the run, or of the labelled part; None where there are none."""
    if train.classes:
        return train
    section = labelled_part(config.data)
    if section is config.data:
        return None
    try:
        labelled: ImageDataset = section.build("train")
    except UserError as missing:
        logger.info("no probe while the run trains: %s", missing)
        return None
    return labelled
