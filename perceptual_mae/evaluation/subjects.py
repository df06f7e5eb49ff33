"""What is scored: a run's encoder, the same before training, pixels; and how their features are computed."""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from perceptual_mae.config import build
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.evaluation.labelled_data import LabelledData
from perceptual_mae.evaluation.representation.features import (
    Extractor,
    Features,
    Watch,
    encoder_features,
    extract_features,
    ignore,
    pixel_features,
)
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.run.run import Run


def make_accelerator(config: RunConfig) -> Accelerator:
    """Return Accelerate's view of processes, device and the run's precision (bf16 where fp16 has no GPU)."""
    precision = config.training.precision
    AcceleratorState._reset_state()  # it keeps the precision of whatever was opened before
    if precision == "fp16" and not torch.cuda.is_available():
        precision = "bf16"
    return Accelerator(mixed_precision=precision)


def open_generator(run: Run, accelerator: Accelerator, ema: bool | None) -> MaskedAutoencoder:
    """Return the run's generator, frozen, in evaluation mode and on the device."""
    return run.generator(ema=ema).requires_grad_(False).to(accelerator.device)


def subjects(
    generator: MaskedAutoencoder, config: RunConfig, accelerator: Accelerator, *, baselines: bool
) -> dict[str, Extractor]:
    """Return what is scored by name: the run's encoder, and with `baselines` the same before training, and pixels."""
    extractors: dict[str, Extractor] = {"encoder": encoder_features(generator.encoder)}
    if baselines:
        untrained = build.build_generator(config).eval().requires_grad_(False).to(accelerator.device)
        extractors |= {"random encoder": encoder_features(untrained.encoder), "raw pixels": pixel_features}
    return extractors


def both_splits(
    extractor: Extractor, data: LabelledData, accelerator: Accelerator, name: str, watch: Watch = ignore
) -> tuple[Features, Features]:
    """Return the features of the training and of the test images, without augmentation."""
    return (
        extract(extractor, data.train, data, accelerator, f"{name}, train", watch),
        extract(extractor, data.test, data, accelerator, f"{name}, {data.split}", watch),
    )


def extract(
    extractor: Extractor, dataset: ImageDataset, data: LabelledData, accelerator: Accelerator, name: str, watch: Watch
) -> Features:
    """Return the features of one part of labelled data, prepared as the run prepares held-out images."""
    return extract_features(
        extractor, dataset, data.transform, accelerator, workers=data.workers, name=name, watch=watch
    )


def uses_ema(run: Run, ema: bool | None) -> bool:
    """Tell whether averaged weights are scored: as asked, or where the run keeps them."""
    return run.has_ema if ema is None else ema
