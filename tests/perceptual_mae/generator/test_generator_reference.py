"""The plain masked autoencoder equals the one in transformers, weight for weight."""

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.generator.vit import sincos_positions
from perceptual_mae.images import patchify
from perceptual_mae.masking import draw_masks, num_hidden, random

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def block_weights(reference, theirs, ours):
    """State of one block under our names, from the reference's state."""
    qkv = [f"{theirs}.attention.{part}_proj" for part in "qkv"]
    names = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    weights = {}
    for kind in ("weight", "bias"):
        weights[f"{ours}.attn.qkv.{kind}"] = torch.cat([reference[f"{name}.{kind}"] for name in qkv])
        weights |= {f"{ours}.{mine}.{kind}": reference[f"{theirs}.{other}.{kind}"] for mine, other in names.items()}
    return weights


def converted(reference, depth, decoder_depth):
    modules = {
        "encoder.patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "encoder.norm": "vit.layernorm",
        "decoder.embed": "decoder.decoder_embed",
        "decoder.norm": "decoder.decoder_norm",
        "decoder.pred": "decoder.decoder_pred",
    }
    weights = {
        "encoder.cls_token": reference["vit.embeddings.cls_token"],
        "encoder.pos_embed": reference["vit.embeddings.position_embeddings"],
        "encoder.mean": torch.tensor(MEAN).view(3, 1, 1),
        "encoder.std": torch.tensor(STD).view(3, 1, 1),
        "decoder.mask_token": reference["decoder.mask_token"],
        "decoder.pos_embed": reference["decoder.decoder_pos_embed"],
    }
    for mine, other in modules.items():
        weights |= {f"{mine}.{kind}": reference[f"{other}.{kind}"] for kind in ("weight", "bias")}
    for index in range(depth):
        weights |= block_weights(reference, f"vit.layers.{index}", f"encoder.blocks.{index}")
    for index in range(decoder_depth):
        weights |= block_weights(reference, f"decoder.decoder_layers.{index}", f"decoder.blocks.{index}")
    return weights


def reference_positions(side, width):
    positions = build_2d_sinusoidal_position_embedding(side, side, width, cls_token=True)
    return positions.roll(width // 2, dims=-1)[None]  # published weights put the column's half first


def pair(image_size, patch_size, width, depth, heads, decoder_width, decoder_depth, decoder_heads, norm_pix):
    """A reference with random weights, no parameter left at zero or one, and our generator with the same weights."""
    torch.manual_seed(0)
    reference = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=image_size,
            patch_size=patch_size,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            decoder_hidden_size=decoder_width,
            decoder_num_hidden_layers=decoder_depth,
            decoder_num_attention_heads=decoder_heads,
            decoder_intermediate_size=4 * decoder_width,
            norm_pix_loss=norm_pix,
            layer_norm_eps=1e-6,
        )
    ).eval()
    generator = MaskedAutoencoder(
        (image_size, image_size),
        3,
        MEAN,
        STD,
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=heads,
        decoder_width=decoder_width,
        decoder_depth=decoder_depth,
        decoder_heads=decoder_heads,
        norm_pix=norm_pix,
    )
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
        # Built without a checkpoint, this version of the reference leaves its fixed positions at zero.
        side = image_size // patch_size
        reference.vit.embeddings.position_embeddings.copy_(reference_positions(side, width))
        reference.decoder.decoder_pos_embed.copy_(reference_positions(side, decoder_width))
    generator.load_state_dict(converted(reference.state_dict(), depth, decoder_depth), strict=True)
    return reference, generator


def compare(reference, generator, batch):
    height, width = generator.image_size
    images = torch.rand(batch, 3, height, width)
    patches = generator.grid[0] * generator.grid[1]
    generators = [torch.Generator().manual_seed(index) for index in range(batch)]
    mask = draw_masks(random, generator.grid, num_hidden(patches, 0.75), generators)
    pixels = generator.encoder.normalise(images)
    noise = mask * 1000.0 + torch.arange(patches)  # sorts the visible patches first, and both kinds in ascending order
    with torch.no_grad():
        expected = reference(pixels, noise=noise)
        ours = generator(images, mask)
    assert torch.equal(expected.mask.bool(), mask)
    prediction = patchify(ours.prediction[0], generator.patch_size)
    assert (prediction - expected.logits).abs().max() <= 1e-5
    target = patchify(generator.target(images, 1)[0], generator.patch_size)
    loss = (prediction - target).square().mean(dim=-1)[mask].mean()
    assert abs(loss.item() - expected.loss.item()) <= 1e-5
    assert expected.loss.item() > 0.1, "a comparison of something"


@pytest.mark.parametrize("width", [32, 192])
def test_positions_equal_transformers(width):
    torch.testing.assert_close(sincos_positions((8, 8), width), reference_positions(8, width), atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm_pix", [False, True])
def test_tiny_prediction_and_loss_equal_transformers(norm_pix):
    compare(*pair(32, 4, 48, 3, 3, 32, 2, 4, norm_pix), batch=3)


@pytest.mark.slow
@pytest.mark.parametrize("norm_pix", [False, True])
def test_vit_base_prediction_and_loss_equal_transformers(norm_pix):
    compare(*pair(224, 16, 768, 12, 12, 512, 8, 16, norm_pix), batch=2)


def test_encoder_of_whole_images_equals_transformers_without_masking():
    reference, generator = pair(32, 4, 48, 3, 3, 32, 2, 4, False)
    reference.config.mask_ratio = 0.0
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = reference.vit(generator.encoder.normalise(images), noise=torch.arange(64.0).expand(2, -1))
        tokens = generator.encoder(images)
    assert (tokens - expected.last_hidden_state).abs().max() <= 1e-5
