"""UperNet: published sizes, shapes at any image, losses with ignored pixels, one image at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.transfer.encoders import Trunk, adapt_encoder
from perceptual_mae.transfer.segmentation.batch import SegmentationBatch
from perceptual_mae.transfer.segmentation.network import BatchNorm, FourTaps, Segmenter, UPerHead
from perceptual_mae.transfer.taps import Taps, standard_taps

EVERY_BLOCK = Taps((1, 2, 3, 4), "standard")
STANDARD = Taps(standard_taps(12), "standard")


def parameters_of(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def test_vit_b_at_512_pixels_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        encoder = Encoder((224, 224), 3, (0.5,) * 3, (0.5,) * 3, patch_size=16, width=768, depth=12, heads=12)
        plain = adapt_encoder(encoder, (512, 512))
        whole = adapt_encoder(encoder, (512, 512), relative_positions=True, layer_scale=1.0)
        parts = (parameters_of(plain), parameters_of(whole))
        network = Segmenter(Trunk(whole, STANDARD, keeps_final_norm=True), 150, 255)
    # Patch embedding, 12 blocks, class token, 1025 positions, final norm; then tables of 63^2 + 3 offsets, 12 heads.
    assert parts[0] == 590_592 + 12 * 7_087_872 + 768 + 1025 * 768 + 1536 == 86_434_560
    tables, scales = 12 * 12 * (63**2 + 3), 12 * 2 * 768
    assert (tables, parts[1] - parts[0]) == (571_968, tables + scales)
    counts = {name: parameters_of(part) for name, part in network.named_children()}
    assert counts == {"trunk": parts[1], "neck": 7_081_728, "head": 67_963_542, "auxiliary": 1_808_534}
    assert round(parameters_of(network) / 1e6, 2) == 163.88


def test_at_width_192_it_has_the_number_of_parameters_of_camvids_recipe() -> None:
    with torch.device("meta"):
        encoder = Encoder((32, 32), 3, (0.5,) * 3, (0.5,) * 3, patch_size=16, width=192, depth=12, heads=3)
        network = Segmenter(Trunk(encoder, STANDARD), 11, 255, channels=192)
    counts = {name: parameters_of(part) for name, part in network.named_children() if name != "trunk"}
    assert counts == {"neck": 443_328, "head": 4_246_091, "auxiliary": 445_707}


def tiny(norm: str = "batch", taps: Taps = EVERY_BLOCK, **options: object) -> Segmenter:
    torch.manual_seed(0)
    encoder = Encoder(
        (32, 32), 3, (0.5,) * 3, (0.25,) * 3, patch_size=8, width=16, depth=4, heads=2, positions="learned"
    )
    return Segmenter(Trunk(encoder, taps), 3, 255, 0.2, channels=8, auxiliary_channels=4, norm=norm, **options)


def batch_of(size: int = 2, height: int = 32, width: int = 24) -> SegmentationBatch:
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (size, 3, height, width), generator=draw, dtype=torch.uint8)
    masks = torch.randint(0, 3, (size, height, width), generator=draw).to(torch.uint8)
    return SegmentationBatch(torch.ones(size, dtype=torch.int64), torch.arange(size), images, masks)


@pytest.mark.parametrize("grid", [(4, 4), (1, 1), (3, 5), (2, 7)])
def test_the_necks_maps_are_four_two_one_and_half_the_taps_size(grid: tuple[int, int]) -> None:
    neck = FourTaps((16,) * 4, (8,) * 4, norm="group", with_norms=True)
    sizes = [tuple(each.shape[2:]) for each in neck([torch.randn(1, 16, *grid)] * 4)]
    rows, columns = grid
    halves = (-(-rows // 2), -(-columns // 2))
    assert sizes == [(4 * rows, 4 * columns), (2 * rows, 2 * columns), grid, halves]
    assert neck.strides == (2, 4, 8, 16)


def test_each_map_of_an_msg_mae_has_a_norm_of_its_own() -> None:
    plain, normed = tiny(), tiny(taps=Taps((1, 2, 3, 4), "skips", has_norms=True))
    assert parameters_of(normed.neck) - parameters_of(plain.neck) == 4 * 2 * 16


def test_networks_of_stages_keep_their_maps() -> None:
    neck = FourTaps((4, 8, 16, 32), (4, 8, 16, 32), norm="batch", with_norms=False)
    maps = [torch.randn(1, channels, 8, 8) for channels in (4, 8, 16, 32)]
    assert all(torch.equal(one, other) for one, other in zip(neck(maps), maps, strict=True))
    assert parameters_of(neck) == 0


def test_scores_have_the_size_of_the_image() -> None:
    network = tiny().eval()
    for height, width in ((32, 32), (8, 8), (40, 64)):
        scores = network(torch.rand(1, 3, height, width))
        assert (tuple(scores.shape), scores.dtype) == ((1, 3, height, width), torch.float32)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_batch_of_one_image_trains_every_parameter(norm: str) -> None:
    network = tiny(norm).train()
    batch = batch_of(1).to("cpu")
    losses = network.loss(batch, network.draw(batch, 0))
    sum(losses.values()).backward()
    assert all(bool(each.isfinite()) for each in losses.values())
    assert [name for name, each in network.named_parameters() if each.grad is None] == []


def test_one_value_a_channel_is_normalised_by_the_running_statistics() -> None:
    norm = BatchNorm(2).train()
    norm.running_mean.copy_(torch.tensor([1.0, -1.0]))
    norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    values = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(norm(values).flatten(), torch.tensor([1.0, 2.0]), rtol=1e-4, atol=1e-4)
    assert norm.running_mean.tolist() == [1.0, -1.0]
    many = torch.randn(4, 2, 3, 3)
    torch.testing.assert_close(norm(many), F.batch_norm(many, None, None, training=True))


def test_the_loss_is_the_mean_over_all_pixels_and_ignored_ones_have_none() -> None:
    network, batch = tiny(dropout=0.0).eval(), batch_of().to("cpu")
    with torch.no_grad():
        log_probabilities = network(batch.images).log_softmax(1)
        expected = -log_probabilities.gather(1, batch.masks[:, None])[:, 0]
        losses = network.loss(batch, {})
        torch.testing.assert_close(losses["cross_entropy"], expected.mean())
        batch.masks[:, :16] = 255
        expected[:, :16] = 0
        torch.testing.assert_close(network.loss(batch, {})["cross_entropy"], expected.mean())
        batch.masks[:] = 255
        assert network.loss(batch, {})["cross_entropy"] == 0


def test_the_auxiliary_loss_has_its_weight_and_can_be_left_out() -> None:
    batch = batch_of().to("cpu")
    light, heavy = (tiny(auxiliary_weight=weight).eval().loss(batch, {})["auxiliary"] for weight in (0.4, 0.8))
    assert float((heavy / light).detach()) == pytest.approx(2)
    torch.manual_seed(0)
    without = Segmenter(tiny().trunk, 3, 255, channels=8, auxiliary_channels=0)
    assert set(without.loss(batch, {})) == {"cross_entropy"}


def test_draws_belong_to_the_images_not_to_their_batch() -> None:
    network, batch = tiny(dropout=0.5), batch_of(4)
    draws = network.draw(batch, 7)
    assert {name: tuple(each.shape) for name, each in draws.items()} == {
        "drop_path": (4, 4, 2),
        "head": (4, 8),
        "auxiliary": (4, 4),
    }
    half = SegmentationBatch(batch.passes[2:], batch.indices[2:], batch.images[2:], batch.masks[2:])
    assert all(torch.equal(network.draw(half, 7)[name], draws[name][2:]) for name in draws)
    assert set(draws["head"].flatten().tolist()) == {0.0, 2.0}


def test_a_frozen_encoder_gets_no_gradient_and_the_head_does() -> None:
    network = tiny()
    network.freeze_trunk()
    network.train()
    assert not network.trunk.training
    sum(network.loss(batch_of().to("cpu"), {}).values()).backward()
    assert all(each.grad is None for each in network.trunk.parameters())
    assert all(each.grad is not None for each in network.head.parameters())


def test_layers_rates_reach_the_head_last() -> None:
    network = tiny()
    layers = {name: network.layer_of(name) for name, _ in network.named_parameters()}
    assert layers["trunk.encoder.pos_embed"] == 0
    assert layers["trunk.encoder.blocks.3.attn.qkv.weight"] == 4
    assert {layers["head.classify.weight"], layers["neck.scales.0.0.weight"]} == {5}


def test_pools_larger_than_the_smallest_map_are_no_trouble() -> None:
    head = UPerHead((4, 4, 4, 4), 3, channels=4, pools=(1, 2, 3, 6), norm="group")
    maps = [torch.randn(1, 4, side, side) for side in (8, 4, 2, 1)]
    assert tuple(head(maps).shape) == (1, 3, 8, 8)
