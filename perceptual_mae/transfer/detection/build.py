"""A detector at its first step, on the encoder of a source; and its parts, for a dry run."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perceptual_mae.config.build import user_mistakes
from perceptual_mae.errors import UserError
from perceptual_mae.images import Size
from perceptual_mae.seeding import stream_seed
from perceptual_mae.transfer.detection.config import DetectConfig
from perceptual_mae.transfer.detection.detector import Detector, Heads, build_neck
from perceptual_mae.transfer.detection.necks import LEVELS
from perceptual_mae.transfer.detection.trunk import WindowedTrunk
from perceptual_mae.transfer.encoders import Source
from perceptual_mae.transfer.taps import Taps, quarter_taps


def build_detector(
    source: Source, config: DetectConfig, num_classes: int, seed: int, *, frozen: bool = False
) -> tuple[Detector, Taps]:
    """Return the detector at its first step, neck and heads drawn from the seed, and the maps that it reads."""
    section, heads = config.encoder, config.detector.heads()
    size = (section.image_size, section.image_size)
    if heads.norm == "group" and heads.channels % 32:
        raise UserError(f"detector.channels: {heads.channels} do not fall into the 32 groups of detector.norm=group")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed("detector", seed))
        trunk, taps = (
            timm_trunk(source, config, size, seed) if source.run is None else own_trunk(source, config, size, seed)
        )
        check_size(section.image_size, trunk)
        neck = build_neck(config.detector.neck, trunk, heads, has_norms=taps.has_norms)
        detector = Detector(trunk, neck, num_classes, heads, drop_path=0.0 if source.run is None else section.drop_path)
    if frozen:
        detector.freeze_trunk()
    return detector, taps


def own_trunk(source: Source, config: DetectConfig, size: Size, seed: int) -> tuple[WindowedTrunk, Taps]:
    """Return the source's encoder with windows, and the maps that it hands over."""
    section = config.encoder
    encoder = source.encoder(seed)
    if encoder.channels != 3:
        raise UserError(f"{source.words}: its encoder takes {encoder.channels} channel(s), the images have 3")
    if encoder.relative_positions and section.relative_positions != "none":
        raise UserError(
            f"encoder.relative_positions: is {section.relative_positions}, but {source.words} was pre-trained with "
            "tables of its own; set none to keep them"
        )
    depth = len(encoder.blocks)
    quarters = quarter_taps(depth)
    if config.detector.neck == "simple_pyramid":
        taps = Taps((depth,), "standard")
    elif section.taps is not None:
        taps = Taps(section.taps, "chosen")
    else:
        taps = source.taps if source.taps.source == "skips" else Taps(quarters, "standard")
    chosen = {"encoder.taps": section.taps or (), "encoder.global_blocks": section.global_blocks or ()}
    for key, blocks in chosen.items():
        if list(blocks) != sorted(blocks) or any(not 1 <= block <= depth for block in blocks):
            raise UserError(f"{key}: is {list(blocks)}; give blocks from 1 to {depth}, in their order")
    reads_four = config.detector.neck == "four_taps"
    trunk = user_mistakes(
        lambda: WindowedTrunk(
            encoder,
            size,
            taps=taps.blocks,
            window=section.window,
            global_blocks=section.global_blocks or (taps.blocks if reads_four else quarters),
            relative_positions=section.relative_positions,
            positions=section.positions,
        )
    )
    return trunk, taps


def timm_trunk(source: Source, config: DetectConfig, size: Size, seed: int) -> tuple[Any, Taps]:
    """Return timm's network, which attends as it was built to, and the maps that it hands over."""
    trunk = source.timm_trunk(size, stream_seed("detector", seed))
    if config.detector.neck == "simple_pyramid" and len(set(trunk.strides)) > 1:
        raise UserError(
            f"{source.words}: has a pyramid of its own, of which simple_pyramid reads one map; "
            "set detector.neck=four_taps"
        )
    taps: Taps = trunk.taps
    return trunk, Taps(taps.blocks[-1:], taps.source) if config.detector.neck == "simple_pyramid" else taps


def check_size(side: int, trunk: nn.Module) -> None:
    """Refuse a side that leaves p6, of the largest stride, no whole number of pixels."""
    strides: Any = trunk.strides
    largest = 4 * strides[0] if len(set(strides)) == 1 else 2 * max(strides)
    if side % largest:
        raise UserError(f"encoder.image_size: {side} is not a multiple of {largest}, the coarsest level's stride")


def parts_of(detector: Detector) -> dict[str, nn.Module]:
    """Return the parts whose parameters are counted, by their names."""
    heads = detector.roi_heads
    return {
        "trunk": detector.backbone.trunk,
        "neck": detector.backbone.neck,
        "rpn": detector.rpn.head,
        "box_head": heads.box_head,
        "box_predictor": heads.box_predictor,
        "mask_head": heads.mask_head,
        "mask_predictor": heads.mask_predictor,
    }


class Sketch(nn.Module):
    """The parts of a detector without proposals and suppression, which the meta device cannot compute.

    As many proposals as the losses count pass through the heads, a quarter of them through that of the masks.
    """

    def __init__(self, detector: Detector, heads: Heads) -> None:
        super().__init__()
        for name, part in parts_of(detector).items():
            self.add_module(name, part)
        self.backbone: list[nn.Module] = [detector.backbone]  # not a part of its own
        self.channels, self.sampled = heads.channels, heads.sampled[1]

    def loss(self, images: Tensor, draws: Mapping[str, Tensor]) -> dict[str, Any]:
        """Pass images and empty proposals through all parts."""
        pyramid = self.backbone[0](images)
        part = self.get_submodule
        boxes = images.new_empty(self.sampled * len(images), self.channels, 7, 7)
        masks = images.new_empty(max(1, self.sampled // 4) * len(images), self.channels, 14, 14)
        return {
            "rpn": part("rpn")([pyramid[level] for level in (*LEVELS, "p6")]),
            "boxes": part("box_predictor")(part("box_head")(boxes)),
            "masks": part("mask_predictor")(part("mask_head")(masks)),
        }
