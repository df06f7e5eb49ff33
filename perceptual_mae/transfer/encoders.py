"""The encoder that is transferred, as a network of feature maps: a run's, an untrained one, or timm's.

Shapes: B images, C channels, D width, p patch size.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from perceptual_mae.config.build import build_generator
from perceptual_mae.errors import UserError, did_you_mean
from perceptual_mae.evaluation.finetuning.classifier import fresh_encoder
from perceptual_mae.evaluation.open_run import check_ema, uses_ema
from perceptual_mae.evaluation.representation.features import fingerprint, fingerprint_of
from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.generator.relative_position_bias import resize_table
from perceptual_mae.generator.vit import LayerScale, resize_positions
from perceptual_mae.images import Size
from perceptual_mae.pretrained_weights.loading import copy_state, read_weights
from perceptual_mae.run.run import Run
from perceptual_mae.transfer.taps import Taps, standard_taps, taps_of

TIMM = "timm:"
BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
EMBEDDINGS = re.compile(r"(?:^|\.)(?:cls_token|reg_token|pos_embed|patch_embed)(?:\.|$)")


class Trunk(nn.Module):
    """An encoder as a network of feature maps, one after each block of `taps`; its class token is left out.

    The encoder is used as it is, not copied; its final norm, which no map passes through, is removed where
    `keeps_final_norm` is false.
    """

    def __init__(self, encoder: Encoder, taps: Taps, *, keeps_final_norm: bool = False) -> None:
        super().__init__()
        self.encoder, self.taps = encoder, taps
        self.depth = len(encoder.blocks)
        self.channels = (encoder.width,) * len(taps.blocks)
        self.strides = (encoder.patch_size,) * len(taps.blocks)
        self.image_channels, self.patch_size = encoder.channels, encoder.patch_size
        encoder.blocks[max(taps.blocks) :].requires_grad_(False)  # they would have no gradient
        if not keeps_final_norm:
            encoder.add_module("norm", nn.Identity())  # it would be a parameter without a gradient

    def forward(self, images: Tensor, drop_path_masks: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return maps (B, D, H/p, W/p) of images (B, C, H, W) in [0, 1]; `drop_path_masks` (B, blocks, 2): `Block`."""
        _, tapped = self.encoder.encode(images, taps=set(self.taps.blocks), drop_path_masks=drop_path_masks)
        rows, columns = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        maps = (tapped[block] for block in self.taps.blocks)
        return tuple(rearrange(each[:, 1:], "b (h w) d -> b d h w", h=rows, w=columns) for each in maps)

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter: 0 the embeddings, 1 to K the blocks, K + 1 the rest (BEiT, MAE)."""
        return layer_of(name, self.depth)


class TimmTrunk(nn.Module):
    """A network of timm's as a network of feature maps: four blocks of a plain transformer, else its last four stages.

    Any image whose sides are multiples of its largest stride is accepted. Its weights are random until they are loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, image_size: Size) -> None:
        import timm  # seconds to import

        super().__init__()
        try:
            plain: Any = timm.create_model(name, pretrained=False, num_classes=0)
            blocks = len(getattr(plain, "blocks", ()))
            is_plain = isinstance(getattr(plain, "pos_embed", None), Tensor) and blocks > 0
            options: dict[str, Any] = {"img_size": image_size} if hasattr(plain, "patch_embed") else {}
            options |= {"dynamic_img_size": True} if is_plain else {}
            indices = tuple(block - 1 for block in standard_taps(blocks)) if is_plain else (-4, -3, -2, -1)
            network: Any = timm.create_model(name, pretrained=False, features_only=True, out_indices=indices, **options)
        except (RuntimeError, TypeError, AssertionError, IndexError, KeyError) as error:
            raise UserError(f"{TIMM}{name}: gives no feature maps ({' '.join(str(error).split())[:200]})") from error
        self.network = network
        self.depth = blocks if is_plain else 0
        self.channels = tuple(network.feature_info.channels())
        self.strides = tuple(network.feature_info.reduction())
        self.taps = Taps(standard_taps(blocks), "standard") if is_plain else Taps((1, 2, 3, 4), "stages")
        self.image_channels, self.patch_size = 3, max(self.strides)
        known = plain.pretrained_cfg
        for part in ("mean", "std"):
            self.register_buffer(part, torch.tensor(known[part], dtype=torch.get_default_dtype()).view(-1, 1, 1))

    def forward(self, images: Tensor, drop_path_masks: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return maps (B, channels, H/stride, W/stride) of images (B, 3, H, W) in [0, 1]; nothing is dropped."""
        maps: list[Tensor] = self.network((images - self.mean) / self.std)
        if [each.shape[1] for each in maps] != list(self.channels):
            maps = [each.permute(0, 3, 1, 2) for each in maps]  # networks such as Swin give channels last
        return tuple(maps)

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter, as `Trunk` does; all of a network of stages is one layer, and not slowed."""
        return layer_of(name, self.depth) if self.depth else 1


def layer_of(name: str, depth: int) -> int:
    """Return the layer of a parameter of a plain transformer by its name: 0 embeddings, 1 to K blocks, K + 1 others."""
    if block := BLOCK.search(name):
        return int(block[1]) + 1
    return 0 if EMBEDDINGS.search(name) else depth + 1


def adapt_encoder(
    encoder: Encoder,
    image_size: Size,
    *,
    learn_positions: bool = True,
    layer_scale: float | None = None,
    relative_positions: bool = False,
) -> Encoder:
    """Return the same encoder for images of another size: its weights, positions interpolated to the new grid.

    learn_positions: they are a parameter, whatever they were. layer_scale: initial factors of LayerScale where the
    encoder has none. relative_positions: add tables of zeros where it has none. Raises ValueError for sides that the
    patches do not fit.
    """
    patch = encoder.patch_size
    if image_size[0] % patch or image_size[1] % patch:
        raise ValueError(f"{image_size[0]}x{image_size[1]} pixels are no multiple of the encoder's patch size {patch}")
    first: Any = encoder.blocks[0]
    own_scale = first.ls1 if isinstance(first.ls1, LayerScale) else None
    state = encoder.state_dict()
    is_learned = learn_positions or isinstance(encoder.pos_embed, nn.Parameter)
    with torch.device(encoder.cls_token.device):
        adapted = Encoder(
            image_size,
            encoder.channels,
            (0.5,) * encoder.channels,
            (0.5,) * encoder.channels,
            patch_size=patch,
            width=encoder.width,
            depth=len(encoder.blocks),
            heads=encoder.num_heads,
            mlp_ratio=first.mlp.fc1.out_features / encoder.width,
            qkv_bias=first.attn.qkv.bias is not None,
            layer_scale=layer_scale if own_scale is None else 1.0,
            positions="learned" if is_learned else "sincos",
            relative_positions=relative_positions or encoder.relative_positions,
        )
    state["pos_embed"] = resize_positions(state["pos_embed"], encoder.grid, adapted.grid)
    if encoder.relative_positions:
        tables = [name for name in state if name.endswith("relative_position_bias_table")]
        state |= {name: resize_table(state[name], encoder.grid, adapted.grid) for name in tables}
    adapted.load_state_dict({**adapted.state_dict(), **state})
    for module in adapted.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = encoder.norm.eps
    return adapted


@dataclass(frozen=True)
class Source:
    """Which encoder is transferred, opened: `words` is what the user typed.

    from_scratch: fresh weights of its shape (or timm's random ones). run is None for timm.
    """

    words: str
    from_scratch: bool = False
    ema: bool | None = None
    run: Run | None = None

    @property
    def name(self) -> str:
        """What scores call it: the run's folder, or the words."""
        return self.words if self.run is None else self.run.path.absolute().name

    @cached_property
    def taps(self) -> Taps:
        """The blocks that hand maps over; see `taps_of`. Of a run alone."""
        assert self.run is not None
        config = self.run.config
        with torch.device("meta"):
            return taps_of(build_generator(config.generator, config.data.image, config.training.seed))

    def encoder(self, seed: int) -> Encoder:
        """Return the run's encoder, every tensor of it loaded or an error, or fresh weights of a seed."""
        assert self.run is not None
        if self.from_scratch:
            return fresh_encoder(self.run.config, seed)
        return self.run.generator(ema=self.ema).encoder

    def timm_trunk(self, image_size: Size, seed: int) -> TimmTrunk:
        """Return timm's network with the weights of its file, or random ones of a seed."""
        name, _, file = self.words.removeprefix(TIMM).partition(":")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trunk = TimmTrunk(name, image_size)
        if file and not self.from_scratch:
            load_timm(trunk, name, file)
        return trunk

    def describe(self) -> dict[str, Any]:
        """Return what a score says of the encoder: whose it is, its step, its tensors."""
        if self.run is None:
            trunk = self.timm_trunk((224, 224), 0)
            has_weights = ":" in self.words.removeprefix(TIMM) and not self.from_scratch
            loaded = len(trunk.network.state_dict()) if has_weights else 0
            digest = fingerprint_of(trunk.network.state_dict()) if has_weights else None
            return {
                "run": self.words,
                "step": 0,
                "ema": False,
                "encoder_sha256": digest,
                "encoder_tensors": {"loaded": loaded, "missing": 0},
            }
        encoder = self.encoder(0)
        return {
            "run": self.run.path.absolute().name,
            "step": self.run.step,
            "ema": uses_ema(self.run, self.ema) and not self.from_scratch,
            "encoder_sha256": None if self.from_scratch else fingerprint(encoder),
            "encoder_tensors": {"loaded": 0 if self.from_scratch else len(encoder.state_dict()), "missing": 0},
        }


def open_source(words: str, *, from_scratch: bool = False, ema: bool | None = None, trust_code: bool = False) -> Source:
    """Open what the user named: a run folder (an import is one), a checkpoint in it, timm:NAME or timm:NAME:FILE.

    Raises UserError for what is not there.
    """
    if from_scratch and ema is not None:
        raise UserError("--from-scratch takes none of the run's weights; leave out --ema and --no-ema")
    if not words.startswith(TIMM):
        run = Run(Path(words).expanduser(), trust_code=trust_code)
        check_ema(run, ema)
        return Source(words, from_scratch, ema, run)
    import timm

    name, _, file = words.removeprefix(TIMM).partition(":")
    if not timm.is_model(name):
        raise UserError(f"{words}: timm has no network {name!r}{did_you_mean(name, timm.list_models())}")
    if file and not Path(file).expanduser().is_file():
        raise UserError(f"{words}: {file} is no file; give the state dict of {name} (.safetensors, or torch.save's)")
    return Source(words, from_scratch)


def load_timm(trunk: TimmTrunk, name: str, file: str) -> None:
    """Load a file of weights for timm's network `name`; timm interpolates positions. UserError where it misfits."""
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    whole: Any = timm.create_model(name, pretrained=False, num_classes=0)
    try:
        copy_state(whole, dict(read_weights(name, file)), name, file)
    except ValueError as error:
        raise UserError(str(error)) from error
    state: Mapping[str, Tensor] = whole.state_dict()
    if trunk.depth:
        state = checkpoint_filter_fn(dict(state), trunk.network.model)
    own = {_name_in_the_whole(key): key for key in trunk.network.state_dict()}
    trunk.network.load_state_dict({key: state[name] for name, key in own.items()})


def _name_in_the_whole(name: str) -> str:
    """Return what timm calls a tensor before it makes a network of feature maps: stages_0.x is stages.0.x there."""
    return re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name.removeprefix("model."))
