"""Trunk, necks and heads: published parameter counts, windows against global attention, shapes, empty images."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.transfer.detection.batch import DetectionBatch
from perceptual_mae.transfer.detection.detector import Detector, Heads, build_neck
from perceptual_mae.transfer.detection.positions import DecomposedPositions, TablePositions
from perceptual_mae.transfer.detection.trunk import WindowedTrunk, cut_windows, join_windows
from perceptual_mae.transfer.training import parameter_groups

COCO_CLASSES = 80
QUARTERS = (3, 6, 9, 12)


def encoder_of(width: int, depth: int, heads: int, grid: int = 14, patch_size: int = 16, **options: Any) -> Encoder:
    side = grid * patch_size
    options = {"patch_size": patch_size, "width": width, "depth": depth, "heads": heads, **options}
    return Encoder((side, side), 3, (0.5,) * 3, (0.25,) * 3, **options)


def vitdet(width: int = 768, depth: int = 12, heads: int = 12) -> Detector:
    with torch.device("meta"):
        blocks = tuple(depth * quarter // 4 for quarter in (1, 2, 3, 4))
        encoder = encoder_of(width, depth, heads)
        trunk = WindowedTrunk(encoder, (1024, 1024), taps=(depth,), window=14, global_blocks=blocks)
        return Detector(trunk, build_neck("simple_pyramid", trunk, Heads()), COCO_CLASSES)


def mimdet() -> Detector:
    with torch.device("meta"):
        trunk = WindowedTrunk(
            encoder_of(768, 12, 12),
            (1024, 1024),
            taps=QUARTERS,
            window=16,
            global_blocks=QUARTERS,
            relative_positions="tables",
            positions="sincos",
        )
        heads = Heads(norm="batch")
        return Detector(trunk, build_neck("four_taps", trunk, heads), COCO_CLASSES, heads)


def size(module: nn.Module | None) -> int:
    assert module is not None
    return sum(parameter.numel() for parameter in module.parameters())


HEADS = {
    "rpn": 1_184_015,
    "roi_heads.box_head": 15_207_424,
    "roi_heads.box_predictor": 415_125,
    "roi_heads.mask_head": 2_361_344,
    "roi_heads.mask_predictor": 283_217,
}
"""FRONTIER's 1.184, 15.207 + .415 and 2.361 + .283 million, with 81 classes."""
BLOCKS_AND_PATCHES = 12 * 7_087_872 + 590_592


@pytest.mark.parametrize("build", [vitdet, mimdet])
def test_heads_have_the_published_parameters(build: Any) -> None:
    detector = build()
    assert {name: size(detector.get_submodule(name)) for name in HEADS} == HEADS


def test_simple_pyramid_has_vitdets_parameters() -> None:
    detector = vitdet()
    trunk = detector.backbone.trunk
    assert size(detector.backbone.neck) == 5_560_000
    assert size(trunk.relative) == 8 * 2 * 27 * 64 + 4 * 2 * 127 * 64 == 92_672
    assert size(trunk) == BLOCKS_AND_PATCHES + 196 * 768 + 92_672
    assert size(detector) == 110_899_381


def test_simple_pyramid_of_a_vit_l_has_vitdets_parameters() -> None:
    assert round(size(vitdet(1024, 24, 16)) / 1e6, 1) == 330.7


def test_four_taps_have_mimdets_parameters() -> None:
    detector = mimdet()
    trunk, neck = detector.backbone.trunk, detector.backbone.neck
    assert size(neck.scales) == 7_081_728
    assert size(neck.fpn) == 3_149_824
    assert trunk.pos_embed.numel() == 64 * 64 * 768 == 3_145_728
    assert size(trunk.relative) == 12 * (31**2 + 127**2) == 205_080
    assert size(trunk) == BLOCKS_AND_PATCHES + 3_145_728 + 205_080
    background = 4 * 1025 + 257  # torchvision's predictors have boxes and a mask for it, detectron2's do not
    assert round((size(detector) - background) / 1e6, 2) == 118.67


def tiny_trunk(encoder: Encoder, side: int, **options: Any) -> WindowedTrunk:
    options = {"taps": (len(encoder.blocks),), **options}
    return WindowedTrunk(encoder, (side, side), **options)


def randomised(trunk: WindowedTrunk) -> WindowedTrunk:
    """With relative positions that are not zero."""
    if trunk.relative is not None:
        for parameter in trunk.relative.parameters():
            nn.init.normal_(parameter)
    return trunk


@pytest.fixture
def in_float64() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("relative", ["decomposed", "tables", "none"])
def test_windows_as_large_as_the_grid_equal_global_attention(relative: Any) -> None:
    torch.manual_seed(0)
    encoder = encoder_of(24, 2, 2, grid=6, patch_size=4)
    windowed = randomised(tiny_trunk(encoder, 24, window=6, relative_positions=relative))
    everywhere = tiny_trunk(encoder, 24, window=None, relative_positions=relative)
    state = {name.replace(".windows.", ".global."): value for name, value in windowed.state_dict().items()}
    everywhere.load_state_dict(state)
    images = torch.rand(2, 3, 24, 24)
    (within,), (globally,) = windowed(images), everywhere(images)
    assert within.shape == (2, 24, 6, 6)
    assert (within - globally).abs().max() < 1e-12


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("has_tables", [False, True])
def test_without_windows_the_trunk_equals_an_encoder_whose_class_token_nobody_attends_to(has_tables: bool) -> None:
    torch.manual_seed(0)
    encoder = encoder_of(24, 2, 2, grid=6, patch_size=4, relative_positions=has_tables)
    tables = [block.attn.relative_position_bias_table for block in encoder.blocks]
    images = torch.rand(2, 3, 24, 24)
    for table in tables if has_tables else ():
        nn.init.normal_(table)
        table.data[-2] = table.data[-3] = -torch.inf  # patches to the class token, either way round
    expected = encoder.intermediate(images, [1, 2])
    own = tiny_trunk(encoder, 24, taps=(1, 2), window=None, relative_positions="none")(images)
    difference = max((mine - theirs).abs().max() for mine, theirs in zip(own, expected, strict=True))
    assert difference < 1e-12 if has_tables else difference > 1e-6


@pytest.mark.usefixtures("in_float64")
def test_decomposed_positions_add_the_query_times_the_vectors_of_both_offsets() -> None:
    torch.manual_seed(0)
    rows, columns = 3, 2
    positions = DecomposedPositions((rows, columns), 5)
    for parameter in positions.parameters():
        nn.init.normal_(parameter)
    query = torch.randn(2, 4, rows * columns, 5)
    bias = positions(query, (rows, columns))
    for one in range(rows * columns):
        for other in range(rows * columns):
            down, right = one // columns - other // columns, one % columns - other % columns
            vector = positions.rows[down + rows - 1] + positions.columns[right + columns - 1]
            torch.testing.assert_close(bias[:, :, one, other], query[:, :, one] @ vector)


def test_tables_have_a_number_for_each_offset() -> None:
    table = TablePositions((2, 3), 1)
    table.relative_position_bias_table.data = torch.arange(15.0)[:, None]
    bias = table(torch.zeros(1, 1, 6, 4), (2, 3))[0]
    offsets = {int(bias[one, other]) for one in range(6) for other in range(6)}
    assert offsets == set(range(15))
    assert len({int(bias[place, place]) for place in range(6)}) == 1
    assert bias[0, 1] == bias[1, 2] == bias[4, 5]


def test_relative_positions_are_zero_at_first() -> None:
    torch.manual_seed(0)
    encoder = encoder_of(24, 2, 2, grid=6, patch_size=4)
    images = torch.rand(1, 3, 24, 24)
    kinds: tuple[Any, ...] = ("none", "decomposed", "tables")
    maps = [tiny_trunk(encoder, 24, window=3, relative_positions=kind)(images)[0] for kind in kinds]
    assert torch.allclose(maps[0], maps[1], atol=1e-6)
    assert torch.allclose(maps[0], maps[2], atol=1e-6)


def test_a_window_reaches_no_further_than_itself_and_a_global_block_reaches_everything() -> None:
    torch.manual_seed(0)
    encoder = encoder_of(24, 2, 2, grid=8, patch_size=4)
    images = torch.rand(1, 3, 32, 32)
    changed = images.clone()
    changed[..., :4, :4] = 0
    reach = []
    for global_blocks in ((), (2,)):
        trunk = tiny_trunk(encoder, 32, window=4, global_blocks=global_blocks)
        reach.append((trunk(images)[0] - trunk(changed)[0]).abs().amax((0, 1)) > 0)
    within = torch.zeros(8, 8, dtype=torch.bool)
    within[:4, :4] = True
    assert reach[0].equal(within)
    assert reach[1].all()


@pytest.mark.parametrize("grid", [(5, 7), (4, 4), (3, 9)])
def test_windows_are_cut_and_joined_without_a_change(grid: tuple[int, int]) -> None:
    tokens = torch.rand(2, *grid, 3)
    windows = cut_windows(tokens, (4, 4))
    assert windows.shape[0] == 2 * -(-grid[0] // 4) * -(-grid[1] // 4)
    assert join_windows(windows, (4, 4), grid).equal(tokens)


def test_an_encoder_with_tables_keeps_them_or_is_refused() -> None:
    encoder = encoder_of(24, 1, 2, grid=4, patch_size=4, relative_positions=True)
    with pytest.raises(ValueError, match="must be none"):
        tiny_trunk(encoder, 16, relative_positions="decomposed")


def test_sincos_positions_of_the_trained_grid_are_those_of_an_encoder_of_that_grid() -> None:
    trunk = tiny_trunk(encoder_of(24, 1, 2, grid=4, patch_size=4), 32, positions="sincos")
    assert trunk.pos_embed.equal(encoder_of(24, 1, 2, grid=8, patch_size=4).pos_embed[:, 1:])
    assert not trunk.pos_embed.requires_grad


def tiny_detector(neck: Any = "simple_pyramid", norm: Any = "layer", side: int = 64, classes: int = 3) -> Detector:
    encoder = encoder_of(32, 4, 2, grid=4, patch_size=8)
    taps = (4,) if neck == "simple_pyramid" else (1, 2, 3, 4)
    trunk = WindowedTrunk(encoder, (side, side), taps=taps, window=3, global_blocks=(2, 4))
    heads = Heads(channels=32, hidden=32, norm=norm, proposals=(100, 50), sampled=(32, 32), detections=10)
    return Detector(trunk, build_neck(neck, trunk, heads), classes, heads, drop_path=0.1)


@pytest.mark.parametrize("neck", ["simple_pyramid", "four_taps"])
@pytest.mark.parametrize("size", [(64, 64), (96, 160), (224, 64)])
def test_pyramids_have_strides_of_a_quarter_patch_to_four_at_any_size(neck: Any, size: tuple[int, int]) -> None:
    detector = tiny_detector(neck)
    pyramid = detector.backbone(torch.rand(1, 3, *size))
    assert list(pyramid) == ["p2", "p3", "p4", "p5", "p6"]
    strides = [2, 4, 8, 16, 32]
    sizes = [tuple(each.shape[1:]) for each in pyramid.values()]
    assert sizes == [(32, -(-size[0] // stride), -(-size[1] // stride)) for stride in strides]


@pytest.mark.parametrize("build", [vitdet, mimdet])
def test_an_image_of_1024_pixels_gives_maps_of_256_to_16(build: Any) -> None:
    neck = build().backbone.neck
    pyramid = neck([torch.empty(1, 768, 64, 64, device="meta")] * (4 if build is mimdet else 1))
    assert [each.shape[-1] for each in pyramid.values()] == [256, 128, 64, 32, 16]


def objects(*boxes: Sequence[float], side: int = 64) -> dict[str, Tensor]:
    masks = torch.zeros(len(boxes), side, side, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[int(top) : int(bottom), int(left) : int(right)] = 1
    labels = 1 + torch.arange(len(boxes)) % 3
    return {"boxes": torch.tensor(boxes).view(-1, 4), "labels": labels, "masks": masks}


def batch_of(*targets: dict[str, Tensor], side: int = 64) -> DetectionBatch:
    images = torch.rand(len(targets), 3, side, side, generator=torch.Generator().manual_seed(0))
    indices = torch.arange(len(targets))
    return DetectionBatch(torch.ones_like(indices), indices, images, targets)


LOSSES = {"classifier", "box_reg", "mask", "objectness", "rpn_box_reg"}


@pytest.mark.parametrize(("neck", "norm"), [("simple_pyramid", "layer"), ("four_taps", "batch")])
@pytest.mark.parametrize("targets", [[()], [(), ((4.0, 8.0, 30.0, 40.0),)]])
def test_losses_and_gradients_are_finite_where_an_image_has_no_object(neck: Any, norm: Any, targets: Any) -> None:
    torch.manual_seed(0)
    detector = tiny_detector(neck, norm).train()
    batch = batch_of(*(objects(*boxes) for boxes in targets))
    losses = detector.loss(batch, detector.draw(batch, 0))
    assert set(losses) == LOSSES
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert (losses["mask"] > 0) == any(targets)
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(value.isfinite().all() for value in detector.state_dict().values())


@pytest.mark.parametrize(("neck", "norm"), [("simple_pyramid", "layer"), ("four_taps", "group")])
def test_detections_of_one_image_lie_inside_it(neck: Any, norm: Any) -> None:
    torch.manual_seed(0)
    detector = tiny_detector(neck, norm).eval()
    with torch.no_grad():
        (detections,) = detector(torch.rand(1, 3, 64, 64))
    boxes = detections["boxes"]
    assert 0 < len(boxes) <= 10
    assert (boxes >= 0).all()
    assert (boxes <= 64).all()
    assert set(detections["labels"].tolist()) <= {1, 2, 3}
    assert detections["masks"].shape == (len(boxes), 1, 28, 28)


def test_anchors_keep_their_places_under_autocast() -> None:
    detector = tiny_detector().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        pyramid = detector.backbone(torch.rand(1, 3, 64, 64))
    assert {each.dtype for each in pyramid.values()} == {torch.float32}


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_losses_under_autocast_are_near_those_without(norm: Any) -> None:
    """The same proposals are drawn: objectness is ranked in float32. With that of bfloat16, box_reg is a tenth."""
    torch.manual_seed(0)
    detector = tiny_detector("four_taps", norm).train()
    batch = batch_of(objects((4.0, 8.0, 30.0, 40.0), (20.0, 20.0, 50.0, 60.0)))
    losses = []
    for is_on in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            losses.append(detector.loss(batch, {}))
    assert {loss.dtype for each in losses for loss in each.values()} == {torch.float32}
    sum(losses[1].values()).backward()
    plain, mixed = ([float(each[name].detach()) for name in sorted(LOSSES)] for each in losses)
    assert mixed == pytest.approx(plain, rel=0.05, abs=0.02)


def test_losses_are_the_same_for_the_same_global_seed() -> None:
    detector = tiny_detector().train()
    batch = batch_of(objects((4.0, 8.0, 30.0, 40.0)))
    draws = detector.draw(batch, 0)
    sums = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        sums.append(float(sum(detector.loss(batch, draws).values()).detach()))
    assert sums[0] == sums[1] != sums[2]


def test_layers_count_from_the_patches_to_the_heads() -> None:
    detector = tiny_detector("four_taps")
    trunk = "backbone.trunk"
    layers = {
        f"{trunk}.pos_embed": 0,
        f"{trunk}.patch_embed.proj.weight": 0,
        f"{trunk}.blocks.0.attn.qkv.weight": 1,
        f"{trunk}.relative.3.rows": 4,
        f"{trunk}.blocks.3.mlp.fc2.bias": 4,
        "backbone.neck.fpn.inner_blocks.0.0.weight": 5,
        "rpn.head.cls_logits.layer.weight": 5,
        "roi_heads.mask_head.0.0.weight": 5,
    }
    names = dict(detector.named_parameters())
    assert set(layers) <= set(names)
    assert {name: detector.layer_of(name) for name in layers} == layers
    assert {detector.layer_of(name) for name in names} == set(range(6))


def test_rates_of_a_vit_b_fall_by_layer_decay_and_positions_do_not_decay() -> None:
    detector = vitdet()
    groups = parameter_groups(detector, detector.layer_of, 13, layer_decay=0.7, weight_decay=0.1)
    scales = {group["layer"]: group["lr_scale"] for group in groups}
    assert scales == {layer: pytest.approx(0.7 ** (13 - layer)) for layer in range(14)}
    spared = {id(each) for group in groups if group["weight_decay"] == 0 for each in group["params"]}
    names = {name for name, parameter in detector.named_parameters() if id(parameter) in spared}
    assert "backbone.trunk.pos_embed" in names
    assert all(name in names for name in dict(detector.named_parameters()) if "norm" in name)
