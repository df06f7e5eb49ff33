"""`AutoencoderRAE` of diffusers with the encoder of an MAE, as the library computes and writes it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from foreign_networks import randomise

MEAN, STD = (0.45, 0.4, 0.35), (0.2, 0.25, 0.3)
"""Of the images: others than those that are the same in every published file."""

PUBLISHED = {"width": 768, "depth": 12, "patch_size": 16, "input_size": 256} | {
    "decoder_width": 1152,
    "decoder_depth": 28,
    "decoder_heads": 16,
    "decoder_hidden": 4096,
}
"""nyu-visionx/RAE-mae-base-p16-ViTXL-n08."""
SMALL = {"width": 64, "depth": 2, "patch_size": 32, "input_size": 224} | {
    "decoder_width": 32,
    "decoder_depth": 2,
    "decoder_heads": 4,
    "decoder_hidden": 80,
}
MLP_WIDTH = 3072
"""Of the encoder, whatever its width."""


class RaeReference(nn.Module):
    """The library's network under its names, those of transformers 5.x in the encoder."""

    decoder_codes: Tensor

    def __init__(
        self,
        width: int,
        depth: int,
        patch_size: int,
        input_size: int,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        decoder_hidden: int,
    ) -> None:
        super().__init__()
        self.patch_size, self.grid, self.heads = patch_size, input_size // patch_size, (width // 64, decoder_heads)
        self.encoder = nn.ModuleDict(
            {
                "embeddings": nn.ModuleDict(
                    {"patch_embeddings": nn.ModuleDict({"projection": nn.Conv2d(3, width, patch_size, patch_size)})}
                ),
                "layers": nn.ModuleList(
                    layer(width, MLP_WIDTH, ["q_proj", "k_proj", "v_proj"], "o_proj", ("mlp.fc1", "mlp.fc2"))
                    for _ in range(depth)
                ),
            }
        )
        embeddings = self.encoder["embeddings"]
        embeddings.register_parameter("cls_token", nn.Parameter(torch.zeros(1, 1, width)))
        positions = codes([*range(224 // patch_size)], width)
        embeddings.register_parameter("position_embeddings", nn.Parameter(positions))
        names = ("intermediate.dense", "output.dense")
        self.decoder = nn.ModuleDict(
            {
                "decoder_embed": nn.Linear(width, decoder_width),
                "decoder_layers": nn.ModuleList(
                    layer(decoder_width, decoder_hidden, ["to_q", "to_k", "to_v"], "to_out.0", names)
                    for _ in range(decoder_depth)
                ),
                "decoder_norm": nn.LayerNorm(decoder_width, eps=1e-12),
                "decoder_pred": nn.Linear(decoder_width, patch_size**2 * 3),
            }
        )
        self.decoder.register_parameter("trainable_cls_token", nn.Parameter(torch.zeros(1, 1, decoder_width)))
        places = (np.arange(self.grid, dtype=np.float32) / np.float32(self.grid / 16)).tolist()
        self.register_buffer("decoder_codes", codes(places, decoder_width), persistent=False)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(f"encoder_{name}", torch.tensor(values).view(1, 3, 1, 1))
        self.register_buffer("_latents_mean", torch.full((width, 1, 1), 0.5))
        self.register_buffer("_latents_std", torch.full((width, 1, 1), 2.0))
        randomise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructions (B, 3, H, W) of whole images (B, 3, H, W), both on the [0, 1] scale."""
        tokens = self.tokens(images)[:, 1:]
        tokens = self.decoder["decoder_embed"](tokens)
        constant = self.decoder.get_parameter("trainable_cls_token")
        tokens = torch.cat([constant.expand(len(tokens), -1, -1), tokens], dim=1) + self.decoder_codes
        for each in self.decoder["decoder_layers"]:
            tokens = apply(each, tokens, self.heads[1])
        patches = self.decoder["decoder_pred"](self.decoder["decoder_norm"](tokens))[:, 1:]
        side = self.grid * self.patch_size
        squares = patches.view(len(images), self.grid, self.grid, self.patch_size, self.patch_size, 3)
        painted = squares.permute(0, 5, 1, 3, 2, 4).reshape(len(images), 3, side, side)
        return painted * self.get_buffer("encoder_std") + self.get_buffer("encoder_mean")

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens (B, 1+L, D) of the encoder, normed without weights."""
        embeddings = self.encoder["embeddings"]
        normalised = (images - self.get_buffer("encoder_mean")) / self.get_buffer("encoder_std")
        patches = embeddings["patch_embeddings"]["projection"](normalised).flatten(2).mT
        positions = embeddings.get_parameter("position_embeddings")
        learnt = math.isqrt(positions.shape[1] - 1)
        if learnt != self.grid:
            square = positions[:, 1:].mT.unflatten(2, (learnt, learnt))
            square = F.interpolate(square, size=(self.grid, self.grid), mode="bicubic", align_corners=False)
            positions = torch.cat([positions[:, :1], square.flatten(2).mT], dim=1)
        token = embeddings.get_parameter("cls_token").expand(len(images), -1, -1)
        tokens = torch.cat([token, patches], dim=1) + positions
        for each in self.encoder["layers"]:
            tokens = apply(each, tokens, self.heads[0])
        return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-12)


def layer(width: int, hidden: int, qkv: list[str], out: str, mlp: tuple[str, str]) -> nn.Module:
    """A pre-norm block whose linear maps have such names."""
    block = nn.Module()
    shapes = {f"attention.{name}": (width, width) for name in [*qkv, out]}
    shapes |= {mlp[0]: (width, hidden), mlp[1]: (hidden, width)}
    for name, (inputs, outputs) in shapes.items():
        *path, last = name.split(".")
        owner = block
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.add_module(last, nn.Linear(inputs, outputs))
    for name in ("before", "after"):
        block.add_module(f"layernorm_{name}", nn.LayerNorm(width, eps=1e-12))
    return block


def apply(block: nn.Module, tokens: Tensor, heads: int) -> Tensor:
    """Tokens (B, N, D) after a block; its linear maps are registered in the order of their use."""
    query, key, value, out, first, second = (each for each in block.modules() if isinstance(each, nn.Linear))
    normed = block.get_submodule("layernorm_before")(tokens)
    split = [part(normed).unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value)]
    weights = (split[0] @ split[1].mT / math.sqrt(split[0].shape[-1])).softmax(dim=-1)
    tokens = tokens + out((weights @ split[2]).transpose(1, 2).flatten(2))
    return tokens + second(F.gelu(first(block.get_submodule("layernorm_after")(tokens))))


def codes(places: list[float] | list[int], width: int) -> Tensor:
    """Position codes (1, 1+L, D) of patches at such rows and columns: sines and cosines, of columns before rows."""
    quarter = width // 4
    rows = [[0.0] * width]
    for down in places:
        for right in places:
            angles = [[place * 10000.0 ** (-step / quarter) for step in range(quarter)] for place in (right, down)]
            rows.append([function(angle) for half in angles for function in (math.sin, math.cos) for angle in half])
    return torch.tensor(rows, dtype=torch.float64).float()[None]


def config_of(sizes: dict[str, int]) -> dict[str, Any]:
    """What the library writes into config.json."""
    return {
        "_class_name": "AutoencoderRAE",
        "_diffusers_version": "0.42.1",
        "encoder_type": "mae",
        "encoder_hidden_size": sizes["width"],
        "encoder_num_hidden_layers": sizes["depth"],
        "encoder_patch_size": sizes["patch_size"],
        "encoder_input_size": sizes["input_size"],
        "patch_size": sizes["patch_size"],
        "decoder_hidden_size": sizes["decoder_width"],
        "decoder_num_hidden_layers": sizes["decoder_depth"],
        "decoder_num_attention_heads": sizes["decoder_heads"],
        "decoder_intermediate_size": sizes["decoder_hidden"],
        "image_size": None,
        "latents_mean": [[[0.5]]] * sizes["width"],
        "latents_std": [[[2.0]]] * sizes["width"],
        "noise_tau": 0.8,
        "scaling_factor": 1.0,
    }


def in_names_of_4(name: str) -> str:
    """A name of the encoder as transformers 4.x has it."""
    for new, old in {
        "encoder.layers.": "encoder.encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }.items():
        name = name.replace(new, old) if name.startswith("encoder.") else name
    return name


def write_rae(folder: Path, sizes: dict[str, int] = SMALL, *, names: int = 5, **config: Any) -> RaeReference:
    """Write a folder as `save_pretrained` does with transformers `names`.x; return the network, in evaluation mode."""
    network = RaeReference(**sizes).eval()
    state = {in_names_of_4(name) if names == 4 else name: value for name, value in network.state_dict().items()}
    folder.mkdir()
    save_file(
        {name: value.contiguous() for name, value in state.items()}, folder / "diffusion_pytorch_model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config_of(sizes) | config))
    return network
