"""A segmenter at its first step, on the encoder of a source."""

from typing import Any

import torch

from perceptual_mae.config.build import user_mistakes
from perceptual_mae.errors import UserError
from perceptual_mae.seeding import stream_seed
from perceptual_mae.transfer.encoders import Source, Trunk, adapt_encoder
from perceptual_mae.transfer.segmentation.config import SegmentConfig
from perceptual_mae.transfer.segmentation.data import IGNORED
from perceptual_mae.transfer.segmentation.network import Segmenter
from perceptual_mae.transfer.taps import Taps


def build_segmenter(source: Source, config: SegmentConfig, classes: int, seed: int, *, frozen: bool) -> Segmenter:
    """Return the network at its first step: the source's encoder, and neck and heads drawn from the seed."""
    section = config.encoder
    drop_path = 0.0 if frozen or source.run is None else section.drop_path
    if source.run is None:
        trunk: Any = source.timm_trunk(config.crop, stream_seed("segmenter", seed))
    else:
        encoder = source.encoder(seed)
        if encoder.channels != 3:
            raise UserError(f"{source.words}: its encoder takes {encoder.channels} channel(s), the images have 3")
        encoder = user_mistakes(
            lambda: adapt_encoder(
                encoder,
                config.crop,
                learn_positions=section.learn_positions,
                layer_scale=section.layer_scale,
                relative_positions=section.relative_positions,
            )
        )
        trunk = Trunk(encoder, chosen_taps(source, config, len(encoder.blocks)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed("segmenter", seed))
        network: Segmenter = config.head.build(trunk, classes, IGNORED, drop_path)
    if frozen:
        network.freeze_trunk()
    return network


def chosen_taps(source: Source, config: SegmentConfig, depth: int) -> Taps:
    """Return the recipe's taps, else the source's own."""
    blocks = config.encoder.taps
    if blocks is None:
        return source.taps
    if list(blocks) != sorted(blocks) or not 1 <= blocks[0] <= blocks[-1] <= depth:
        raise UserError(f"encoder.taps: is {list(blocks)}; give four blocks from 1 to {depth}, in their order")
    return Taps(blocks, "chosen")
