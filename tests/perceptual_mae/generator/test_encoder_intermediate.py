"""Feature maps of chosen blocks, and graphs of the encoder for batches of any size."""

import pytest
import torch

from perceptual_mae.generator.encoder import Encoder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder((32, 32), 3, (0.5,) * 3, (0.25,) * 3, patch_size=8, width=32, depth=3, heads=2).eval()


@torch.no_grad()
def test_maps_are_the_outputs_of_the_blocks_asked_for_in_that_order(encoder: Encoder) -> None:
    images = torch.rand(2, 3, 32, 32)
    last, first = encoder.intermediate(images, (-1, 1))
    _, tapped = encoder.encode(images, taps=(1, 3))
    for maps, block in ((last, 3), (first, 1)):
        assert maps.shape == (2, 32, 4, 4)
        assert torch.equal(maps[:, :, 1, 2], tapped[block][:, 1 + 1 * 4 + 2])


@torch.no_grad()
def test_the_last_map_with_the_norm_is_what_the_encoder_returns(encoder: Encoder) -> None:
    images = torch.rand(2, 3, 16, 48)  # another size: positions are interpolated
    (maps,) = encoder.intermediate(images, (-1,), norm=True)
    assert maps.shape == (2, 32, 2, 6)
    assert torch.equal(maps.flatten(2).transpose(1, 2), encoder(images)[:, 1:])


@pytest.mark.parametrize("block", [0, 4, -4])
def test_a_block_that_is_not_there_is_named(block: int, encoder: Encoder) -> None:
    with pytest.raises(ValueError, match=rf"blocks \[{block}\]: the encoder has blocks 1 to 3"):
        encoder.intermediate(torch.rand(1, 3, 32, 32), (1, block))


def test_images_that_patches_do_not_fit_are_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="multiples of patch_size 8"):
        encoder.intermediate(torch.rand(1, 3, 30, 32), (1,))


@pytest.mark.slow
def test_an_exported_graph_takes_other_batches_than_it_was_traced_with(encoder: Encoder) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(encoder, (torch.rand(2, 3, 32, 32),), dynamic_shapes={"images": {0: batch}})
    for size in (1, 3, 8):
        images = torch.rand(size, 3, 32, 32)
        assert torch.allclose(program.module()(images), encoder(images), atol=1e-5)
