"""Networks and files as other projects write them: random weights, all of them drawn, of any size."""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm.models.vision_transformer as timm_vit
import torch
from torch import Tensor, nn

from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.generator.vit import sincos_positions

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2} | {
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 4,
}
BASE = {"image_size": 224, "patch_size": 16, "width": 768, "depth": 12, "heads": 12} | {
    "decoder_width": 512,
    "decoder_depth": 8,
    "decoder_heads": 16,
}


def vit_mae_of(sizes: Mapping[str, int], **options: Any) -> Any:
    """ViTMAEForPreTraining of these sizes with random weights; the test is skipped without transformers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        intermediate_size=4 * sizes["width"],
        decoder_hidden_size=sizes["decoder_width"],
        decoder_num_hidden_layers=sizes["decoder_depth"],
        decoder_num_attention_heads=sizes["decoder_heads"],
        decoder_intermediate_size=4 * sizes["decoder_width"],
        **options,
    )
    return transformers.ViTMAEForPreTraining(config)


class MaeReference(nn.Module):
    """models_mae.py of facebookresearch/mae on timm's blocks, with its names; `forward` takes the mask's noise."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
    ) -> None:
        super().__init__()

        def blocks(count: int, dim: int, heads: int) -> nn.ModuleList:
            norm = partial(nn.LayerNorm, eps=1e-6)
            return nn.ModuleList(timm_vit.Block(dim, heads, 4, qkv_bias=True, norm_layer=norm) for _ in range(count))

        grid = image_size // patch_size
        self.patch_embed = timm_vit.PatchEmbed(image_size, patch_size, 3, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_positions((grid, grid), width), requires_grad=False)
        self.blocks = blocks(depth, width, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(sincos_positions((grid, grid), decoder_width), requires_grad=False)
        self.decoder_blocks = blocks(decoder_depth, decoder_width, decoder_heads)
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_width, patch_size**2 * 3)
        randomise(self)

    def forward(self, images: Tensor, noise: Tensor, mask_ratio: float = 0.75) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, 1+V, D), predictions (B, L, p*p*3) and mask (B, L) of normalised images, as upstream computes."""
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        keep = int(x.shape[1] * (1 - mask_ratio))
        shuffle = noise.argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        x = x.gather(1, shuffle[:, :keep, None].expand(-1, -1, x.shape[2]))
        mask = torch.ones_like(noise)
        mask[:, :keep] = 0
        mask = mask.gather(1, restore)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        tokens = self.norm(x)
        x = self.decoder_embed(tokens)
        hidden = self.mask_token.expand(len(x), restore.shape[1] + 1 - x.shape[1], -1)
        patches = torch.cat([x[:, 1:], hidden], dim=1).gather(1, restore[..., None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return tokens, self.decoder_pred(self.decoder_norm(x))[:, 1:], mask


def randomise(network: nn.Module) -> None:
    """Draw every parameter but the fixed positions, so that no two of them may change places unnoticed."""
    draws = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if "pos_embed" not in name and "position_embeddings" not in name:
            with torch.no_grad():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draws) + ("norm" in name))


def generator_like(sizes: dict[str, int], **options: Any) -> MaskedAutoencoder:
    """Our generator of the same sizes, in evaluation mode, with weights of its own."""
    options = {name: value for name, value in sizes.items() if name != "image_size"} | options
    generator = MaskedAutoencoder((sizes["image_size"],) * 2, 3, MEAN, STD, **options).eval()
    randomise(generator)
    return generator


def images_of(sizes: dict[str, int], count: int = 2) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], float64."""
    shape = (count, 3, sizes["image_size"], sizes["image_size"])
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def write_mae(path: Path, parts: str = "full", sizes: dict[str, int] = TINY) -> MaeReference:
    """Write what facebookresearch/mae writes or publishes; return the network.

    parts: "full" (a checkpoint of main_pretrain.py), "visualise" (whole, no options), "pretrain" (encoder alone),
    "fine-tuned" (pooled norm and head).
    """
    network = MaeReference(**sizes)
    state = network.state_dict()
    encoder = {name: value for name, value in state.items() if not name.startswith(("decoder_", "mask_token"))}
    if parts == "full":
        args = argparse.Namespace(
            model="mae_vit_base_patch16",
            norm_pix_loss=True,
            input_size=32,
            mask_ratio=0.75,
            output_dir="./out",
            lr=None,
        )
        optimizer = torch.optim.AdamW(network.parameters())
        scaler = {"scale": 65536.0, "growth_factor": 2.0}
        content = {"model": state, "optimizer": optimizer.state_dict(), "epoch": 3, "scaler": scaler, "args": args}
    elif parts == "fine-tuned":
        pooled = {
            name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: encoder[name] for name in encoder
        }
        content = {"model": pooled | {"head.weight": torch.randn(10, 32), "head.bias": torch.randn(10)}}
    else:
        content = {"model": state if parts == "visualise" else encoder}
    torch.save(content, path)
    return network
