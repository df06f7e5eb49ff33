"""What a segmentation would be, before anything is allocated or read."""

from dataclasses import replace

import torch

from perceptual_mae.config.annotated import to_annotated_yaml
from perceptual_mae.errors import UserError
from perceptual_mae.transfer.dry_run import dry_run_lines
from perceptual_mae.transfer.encoders import Source
from perceptual_mae.transfer.segmentation.batch import SegmentationBatch
from perceptual_mae.transfer.segmentation.config import SegmentConfig
from perceptual_mae.transfer.segmentation.data import num_classes
from perceptual_mae.transfer.segmentation.evaluate import build_segmenter, groups_of


def dry_run_segmentation(source: Source, config: SegmentConfig, *, frozen: bool) -> list[str]:
    """Return the resolved recipe, the encoder's maps, parameters, steps, learning rates by layer and memory.

    Weights are not read: those of the encoder are of its shape alone. Images need not be there.
    """
    classes = num_classes(config.data)
    with torch.device("meta"):
        network = build_segmenter(replace(source, from_scratch=True), config, classes, 0, frozen=frozen).train()
        batch = SegmentationBatch(
            torch.zeros(1, dtype=torch.int64, device="cpu"),
            torch.zeros(1, dtype=torch.int64, device="cpu"),
            torch.empty(1, 3, *config.crop),
            torch.empty(1, *config.crop, dtype=torch.int64),
        )
        taps, training = network.trunk.taps, config.training
        lines = dry_run_lines(
            network,
            batch,
            groups_of(network, config),
            config.schedule.at(config.optimizer.lr),
            images=max(1, training.batch_size // training.accumulation),
            batch_size=training.batch_size,
            precision=training.precision,
        )
    try:
        images = f"{len(config.data.build('train')):,} training images"
    except UserError as mistake:
        images = f"no images yet: {mistake}"
    maps = f"maps of blocks {list(taps.blocks)} ({taps.source}), strides {list(network.neck.strides)}"
    return [to_annotated_yaml(config).rstrip("\n"), "", maps, *lines, images]
