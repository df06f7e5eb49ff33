"""Our MSE step and those of other masked autoencoders of the same sizes, in turns, in one process, on the same images.

    uv run python scripts/peers.py --size 32 --precision bf16

prints, of each peer, how many times our time its step takes: median and quartiles over the rounds. The peers are
transformers' ViTMAE, with its fused and its written-out attention, and timm's blocks in the form of
facebookresearch/mae. All have fused AdamW and read the same uint8 batch; autocast is entered in each step. `--compile
ours` has our step with training.compile=all next to theirs as they ship, `--compile all` theirs by torch.compile, too.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from perceptual_mae.benchmark.measure import Quartiles, enter, quartiles, without_collecting
from perceptual_mae.benchmark.profiler import clock_of
from perceptual_mae.config.build import build_generator
from perceptual_mae.config.parsing import RunConfig, load_config
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.schedules import TrainingProgress

ROUNDS, WARMUP = 15, 2
TINY = ("size=tiny", "patch_size=4", "width=192", "depth=12", "heads=3")
TINY_DECODER = ("decoder_width=192", "decoder_depth=4", "decoder_heads=3")
SIZES = {
    "32": ("cifar10", "mse", *(f"generator.{word}" for word in (*TINY, *TINY_DECODER)), "training.batch_size=64"),
    "224": ("imagenet", "mse", "training.batch_size=4"),
}
"""The words of our own configuration of each size: 192x12/192x4 with patch 4, and ViT-B/16."""

Step = Callable[[], object]


class TimmMae(nn.Module):
    """A masked autoencoder of timm's blocks, as facebookresearch/mae composes it: its loss of images (B, 3, H, W).

    Patches are drawn by the order of uniform noise and gathered; the loss is the mean squared error of hidden patches.
    """

    def __init__(self, like: MaskedAutoencoder, image: tuple[int, int], hidden: float) -> None:
        super().__init__()
        encoder, decoder = like.encoder, like.decoder
        width, decoder_width = encoder.pos_embed.shape[-1], decoder.embed.out_features
        self.hidden, self.patch = hidden, like.patch_size
        self.patch_embed = PatchEmbed(image, like.patch_size, 3, width)
        self.register_buffer("positions", encoder.pos_embed.detach().clone())
        self.register_buffer("decoder_positions", decoder.pos_embed.detach().clone())
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, decoder_width))
        self.blocks = _blocks(width, encoder.blocks)
        self.decoder_blocks = _blocks(decoder_width, decoder.blocks)
        self.norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(decoder_width)
        self.embed = nn.Linear(width, decoder_width)
        self.prediction = nn.Linear(decoder_width, 3 * like.patch_size**2)

    def forward(self, images: Tensor) -> Tensor:
        """Return the loss, a scalar, of normalised images."""
        tokens = self.patch_embed(images) + self.positions[:, 1:]
        batch, length, width = tokens.shape
        order = torch.rand(batch, length, device=images.device).argsort(dim=1)
        visible = order[:, : int(length * (1 - self.hidden))]
        tokens = tokens.gather(1, visible[..., None].expand(-1, -1, width))
        class_token = (self.class_token + self.positions[:, :1]).expand(batch, -1, -1)
        tokens = self.embed(self.norm(self.blocks(torch.cat([class_token, tokens], dim=1))))
        shuffled = torch.cat([tokens[:, 1:], self.mask_token.expand(batch, length - visible.shape[1], -1)], dim=1)
        place = order.argsort(dim=1)
        restored = shuffled.gather(1, place[..., None].expand(-1, -1, shuffled.shape[-1]))
        tokens = torch.cat([tokens[:, :1], restored], dim=1) + self.decoder_positions
        predicted = self.prediction(self.decoder_norm(self.decoder_blocks(tokens)))[:, 1:]
        patches = images.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)
        target = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        mask = (place >= visible.shape[1]).float()
        return (((predicted - target) ** 2).mean(dim=-1) * mask).sum() / mask.sum()


def _blocks(width: int, like: nn.ModuleList) -> nn.Sequential:
    return nn.Sequential(*(Block(width, like[0].attn.heads, qkv_bias=True) for _ in like))


def vit_mae(attention: str, like: MaskedAutoencoder, image: tuple[int, int], hidden: float) -> nn.Module:
    """Return transformers' ViTMAE of a generator's sizes, of the attention "sdpa" or "eager". Raises ImportError."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    encoder, decoder = like.encoder, like.decoder
    width, decoder_width = encoder.pos_embed.shape[-1], decoder.embed.out_features
    sizes = ViTMAEConfig(
        image_size=image[0],
        patch_size=like.patch_size,
        mask_ratio=hidden,
        hidden_size=width,
        num_hidden_layers=len(encoder.blocks),
        num_attention_heads=encoder.blocks[0].attn.heads,
        intermediate_size=4 * width,
        decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=len(decoder.blocks),
        decoder_num_attention_heads=decoder.blocks[0].attn.heads,
        decoder_intermediate_size=4 * decoder_width,
        attn_implementation=attention,
    )
    return ViTMAEForPreTraining(sizes)


PEERS: dict[str, Callable[[MaskedAutoencoder, tuple[int, int], float], nn.Module]] = {
    "transformers, sdpa": lambda *sizes: vit_mae("sdpa", *sizes),
    "transformers, eager": lambda *sizes: vit_mae("eager", *sizes),
    "timm's blocks": TimmMae,
}


def peer_step(name: str, config: RunConfig, device: torch.device, *, compiled: bool = False) -> Step:
    """Return what takes one step of a peer of a configuration's sizes, precision and batch. Raises ImportError."""
    like = build_generator(config.generator, config.data.image, 0)
    network = PEERS[name](like, config.data.size, config.masking.ratio).to(device)
    decayed = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    if compiled:
        network.compile()
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (config.data.mean, config.data.std))
    shape = (config.training.batch_size, len(config.data.mean), *config.data.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    images = images.pin_memory() if device.type == "cuda" else images
    in_bf16 = config.training.precision == "bf16"

    def step() -> None:
        pixels = (images.to(device, non_blocking=True).float() / 255 - mean) / std
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            output = network(pixels)
            loss = output if isinstance(output, Tensor) else output.loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def race(
    config: RunConfig, peers: Sequence[str], *, rounds: int = ROUNDS, compiled: bool = False
) -> tuple[Quartiles, dict[str, Quartiles]]:
    """Return the seconds of our own step, and how many times these a step of each peer takes, within each round.

    Seconds are of a GPU's clock or the process's CPU time. compiled: whether the peers' networks are; ours follows
    `training.compile`. Raises ImportError where a peer's library is missing.
    """
    ours = enter("ours", config)
    device = ours.trainer.accelerator.device
    clock = clock_of(device)
    numbers = itertools.count()
    steps: Mapping[str, Step] = {
        "ours": lambda: ours.step(TrainingProgress(1, next(numbers), 1.0)),  # as they come: some also measure
        **{name: peer_step(name, config, device, compiled=compiled) for name in peers},
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARMUP + rounds):
        for name in (steps, reversed(steps))[number % 2]:
            with without_collecting():
                start = clock.mark()
                steps[name]()
                end = clock.mark()
                clock.settle()
            if number >= WARMUP:
                seconds[name].append(clock.between(start, end))
    own = seconds.pop("ours")
    ratios = {
        name: quartiles([peer / one for one, peer in zip(own, each, strict=True)]) for name, each in seconds.items()
    }
    return quartiles(own), ratios


def main(words: Sequence[str] | None = None) -> int:
    """Measure one size in one precision, by one thread, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="32", help="pixels of a side")
    parser.add_argument("--precision", choices=("bf16", "no"), default="bf16", help="no: float32")
    parser.add_argument("--compile", choices=("off", "ours", "all"), default="off", help="which networks are compiled")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    compiled = "off" if arguments.compile == "off" else "all"
    overrides = (f"training.precision={arguments.precision}", f"training.compile={compiled}", "data.workers=0")
    config = load_config([*SIZES[arguments.size], *overrides])
    own, ratios = race(config, list(PEERS), rounds=arguments.rounds, compiled=arguments.compile == "all")
    how = f"{arguments.size} px, {arguments.precision}, compiled: {arguments.compile}, {arguments.rounds} rounds"
    print(f"{how}; our MSE step: {own.median:.3f} s")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio.median:.3f} ({ratio.lower:.3f}, {ratio.upper:.3f}) |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
