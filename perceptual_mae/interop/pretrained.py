"""Weights of others under our names, the network that they are of, and what their file says of it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from discriminators.nvidia import is_nvidias
from perceptual_mae.config.validation import MOST_PATCHES
from perceptual_mae.errors import UserError
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.generator.sizes import SIZES
from perceptual_mae.generator.vit import resize_positions, sincos_codes, sincos_positions
from perceptual_mae.images import Size
from perceptual_mae.interop import stated
from perceptual_mae.interop.key_maps import DECODER, ENCODER, FROM, OF_THE_DATA, RAE_CLASS_TOKEN
from perceptual_mae.interop.reading import RawFile, read_raw
from perceptual_mae.interop.stated import Settings
from perceptual_mae.pretrained_weights.registry import sha256_of
from perceptual_mae.run.checkpoint import state_dict_mismatch

FITS = (
    "what fits: a masked autoencoder or plain vision transformer with a class token, of facebookresearch/mae, "
    "transformers (ViTMAE, ViT), timm or pmae export, or diffusers' AutoencoderRAE with encoder_type mae"
)
SINCOS_TOLERANCE = 1e-5
"""Fixed codes that others computed in float32 differ by less; learned ones by far more."""

_DROPPED = re.compile(r"(head|classifier|fc|pooler|vit\.pooler)\.|.*\brelative_position_index$")
"""Heads of classifiers, and the pooler of ViTModel, which nothing here has."""


@dataclass(frozen=True)
class Pretrained:
    """An encoder, with its decoder where the file has one.

    form: whose names the file has. tensors: under our names, without `encoder.mean` and `encoder.std`. architecture:
    options of the generator that follow from the tensors' shapes. settings: what the file says besides. notes: what of
    the file was not taken, or not as it stands.
    """

    form: str
    file: Path
    tensors: dict[str, Tensor]
    architecture: dict[str, Any]
    settings: Settings
    notes: tuple[str, ...] = field(default=())

    @property
    def has_decoder(self) -> bool:
        return any(name.startswith(DECODER) for name in self.tensors)

    def origin(self) -> dict[str, Any]:
        """Return where the weights are from, for environment.json."""
        path = str(self.file.absolute())
        return {"path": path, "form": self.form, "sha256": sha256_of(self.file), "step": None, "ema": False}

    def generator(self, settings: Settings) -> MaskedAutoencoder:
        """Return the network with these weights, in evaluation mode; `settings` must be complete.

        Without a decoder of the file its own is drawn anew. Raises UserError where the tensors are of another network.
        """
        size, mean, std = settings.image_size, settings.mean, settings.std
        assert size is not None
        assert mean is not None
        assert std is not None
        patch_size, patches = self.architecture["patch_size"], self.tensors[f"{ENCODER}pos_embed"].shape[1] - 1
        if min(size) < 1 or (size[0] // patch_size) * (size[1] // patch_size) != patches:  # before it takes memory
            raise UserError(
                f"{self.file}: {patches} position codes do not go with images of {size[0]}x{size[1]} in patches of "
                f"{patch_size}; give --image-size, or copy the folder whole"
            )
        try:
            generator = MaskedAutoencoder(size, len(mean), mean, std, **self.options(settings))
        except ValueError as mistake:
            raise UserError(f"{self.file}: {' '.join(str(mistake).split())}") from mistake
        state = generator.state_dict()
        kept = {name: value for name, value in state.items() if name in OF_THE_DATA}
        if not self.has_decoder:
            kept |= {name: value for name, value in state.items() if not name.startswith(ENCODER)}
        whole = {**self.tensors, **kept}
        if mismatch := state_dict_mismatch(generator, whole):
            raise UserError(f"{self.file}: another architecture: tensors {mismatch}; {FITS}")
        generator.load_state_dict(whole)
        return generator.eval()

    def options(self, settings: Settings) -> dict[str, Any]:
        """Return the options of `MaskedAutoencoder`, from the tensors, the file and what was given."""
        options = {**self.architecture, **(settings.generator or {})}
        options |= {"heads": settings.heads, "layer_norm_eps": settings.layer_norm_eps}
        if self.has_decoder or settings.generator is not None:
            options |= {"decoder_heads": settings.decoder_heads, "norm_pix": settings.norm_pix}
        return {name: value for name, value in options.items() if value is not None}


def open_pretrained(path: Path) -> Pretrained:
    """Open a file or a folder of weights; its form is recognised by its keys. Raises UserError of one line."""
    raw = read_raw(path)
    form = _form_of(raw)
    tensors, notes = FROM[form](raw.tensors), list[str]()
    tensors = _without_heads(tensors, notes)
    tensors = _with_final_norm(tensors, raw, notes)
    settings = stated.settings_of(raw, form, tensors)
    if settings.no_embed_class:
        tensors = _with_class_position(tensors, notes)
    if form == "diffusers":
        tensors = _as_diffusers_computes(tensors, raw.file, settings, notes)
    tensors = {name: value for name, value in tensors.items() if name not in OF_THE_DATA}
    architecture = _architecture(tensors, raw.file, stated.image_size_of(settings, tensors))
    if settings.image_size is None:
        settings = replace(settings, image_size=stated.image_size_of(settings, tensors))
    return Pretrained(form, raw.file, tensors, architecture, settings, tuple(notes))


def complete(pretrained: Pretrained, given: Settings) -> tuple[Settings, list[str]]:
    """Return the settings of the file with those given on top, and notes on what was given against the file.

    Raises UserError that names each setting which neither states, as an option of `pmae import`.
    """
    values, notes = {}, []
    for each in fields(Settings):
        said, asked = getattr(pretrained.settings, each.name), getattr(given, each.name)
        values[each.name] = said if asked is None else asked
        if asked is not None and said is not None and said != asked:
            notes.append(f"{each.name}: {asked} as given; {pretrained.file.name} says {said}")
    settings = Settings(**values)
    needed = ["heads", "layer_norm_eps", "image_size", "mean", "std"]
    needed += ["decoder_heads", "norm_pix"] if pretrained.has_decoder else []
    missing = [name for name in needed if getattr(settings, name) is None]
    if missing:
        names = ", ".join(missing)
        proposal = " ".join(stated.proposal(name, pretrained.tensors) for name in missing)
        raise UserError(
            f"{pretrained.file}: a file of {pretrained.form} that does not say {names}; say it with options "
            f"(the published models of facebookresearch/mae have: {proposal})"
        )
    return settings, notes


def _form_of(raw: RawFile) -> str:
    names = raw.tensors.keys()
    if is_nvidias(names):
        raise UserError(
            f"{raw.file}: a discriminator of NVIDIA's StyleGAN2 has no encoder; a run's discriminator starts with it "
            "by discriminator.init_from"
        )
    if RAE_CLASS_TOKEN in names:
        _check_rae(raw)
        return "diffusers"
    if "encoder.patch_embed.proj.weight" in names:
        return "perceptual-mae"
    if any(name.removeprefix("vit.") == "embeddings.patch_embeddings.projection.weight" for name in names):
        return "transformers"
    if "patch_embed.proj.weight" in names:
        if raw.generator:
            return "perceptual-mae encoder"
        is_mae = "decoder_embed.weight" in names or raw.args or (raw.wrapper == "model" and not raw.config)
        return "facebookresearch/mae" if is_mae else "timm"
    raise UserError(f"{raw.file}: another architecture (first keys: {', '.join(sorted(names)[:3])}); {FITS}")


def _check_rae(raw: RawFile) -> None:
    """Raise UserError unless an AutoencoderRAE says what its tensors do not show, and has the encoder of an MAE."""
    if not raw.config:
        raise UserError(
            f"{raw.file}: an AutoencoderRAE says in config.json how large its images are; give its folder whole"
        )
    encoders = {"dinov2": ".register_tokens", "siglip2": ".vision_model."}
    by_keys = next((kind for kind, part in encoders.items() if any(part in name for name in raw.tensors)), None)
    if (kind := by_keys or raw.config.get("encoder_type", "dinov2")) != "mae":
        raise UserError(f"{raw.file}: an AutoencoderRAE with the encoder {kind}, which is no MAE; {FITS}")


def _without_heads(tensors: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    dropped = [name for name in tensors if _DROPPED.match(name.removeprefix(ENCODER))]
    if dropped:
        notes.append(f"not taken: {', '.join(dropped)}")
    return {name: value for name, value in tensors.items() if name not in dropped}


def _with_final_norm(tensors: dict[str, Tensor], raw: RawFile, notes: list[str]) -> dict[str, Tensor]:
    """Put the norm of pooled tokens (fc_norm of fine-tuned models) where the encoder's final norm is missing."""
    pooled = {name: value for name, value in tensors.items() if name.startswith(f"{ENCODER}fc_norm.")}
    if not pooled or f"{ENCODER}norm.weight" in tensors:
        return tensors
    notes.append("fc_norm, which norms the mean of all patches in a fine-tuned model, norms each token here")
    renamed = {name.replace("fc_norm", "norm"): value for name, value in pooled.items()}
    return {name: value for name, value in tensors.items() if name not in pooled} | renamed


def _with_class_position(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Give positions of patches alone (timm's no_embed_class) the row of the class token that changes nothing."""
    name = f"{ENCODER}pos_embed"
    if name not in tensors:
        return tensors
    notes.append("pos_embed has no row for the class token: a row of zeros was added")
    return tensors | {name: torch.cat([torch.zeros_like(tensors[name][:, :1]), tensors[name]], dim=1)}


def _as_diffusers_computes(
    tensors: dict[str, Tensor], file: Path, settings: Settings, notes: list[str]
) -> dict[str, Tensor]:
    """Add to an AutoencoderRAE what the library computes instead of reading it, for images of the size it states.

    That is positions of both halves (the encoder's interpolated; the decoder's those of 16 x 16 patches, stretched), a
    final norm without weights of its own, and mask tokens, which it has none of: they are zeros that nothing reads.
    """
    codes, kernel, last = (
        tensors.get(f"encoder.{name}") for name in ("pos_embed", "patch_embed.proj.weight", "norm.weight")
    )
    pred = tensors.get("decoder.pred.weight")
    if codes is None or codes.dim() != 3 or kernel is None or kernel.dim() != 4 or pred is None or pred.dim() != 2:
        return tensors  # reported by _architecture
    assert settings.image_size
    patch_size, (width, decoder_width) = kernel.shape[-1], (kernel.shape[0], pred.shape[1])
    side, old = settings.image_size[0] // patch_size, math.isqrt(codes.shape[1] - 1)
    if settings.image_size[0] % patch_size or not 1 <= side**2 <= MOST_PATCHES or not codes.shape[1] == 1 + old**2 > 1:
        raise UserError(
            f"{file}: images of {settings.image_size[0]} pixels (encoder_input_size), patches of {patch_size} and "
            f"{codes.shape[1]} position codes do not go together; copy the folder whole"
        )
    if len(pred) != patch_size**2 * kernel.shape[1]:
        raise UserError(
            f"{file}: another architecture: its decoder paints patches of another size than the {patch_size} pixels of "
            "its encoder's (decoder.decoder_pred.weight); generator.patch_size is one for both"
        )
    if last is not None:
        notes.append("not taken: the encoder's final norm, of which AutoencoderRAE reads no weights")
    places = (torch.arange(side, dtype=torch.float32) / (side / 16)).double()
    notes.append("it paints whole images: masking.ratio is 0, and its mask token was never trained")
    return tensors | {
        "encoder.pos_embed": resize_positions(codes, (old, old), (side, side)),
        "encoder.norm.weight": torch.ones(width),
        "encoder.norm.bias": torch.zeros(width),
        "decoder.pos_embed": sincos_codes(places, places, decoder_width),
        "decoder.mask_token": torch.zeros(1, 1, decoder_width),
    }


def _architecture(tensors: Mapping[str, Tensor], file: Path, size: Size | None) -> dict[str, Any]:
    """Return the options of the generator that shapes decide; UserError where a tensor they need is not there."""
    has_decoder = any(name.startswith(DECODER) for name in tensors)
    needed = {
        "encoder.cls_token": 3,
        "encoder.pos_embed": 3,
        "encoder.patch_embed.proj.weight": 4,
        "encoder.blocks.0.mlp.fc1.weight": 2,
    }
    if has_decoder:
        needed |= {"decoder.embed.weight": 2, "decoder.blocks.0.mlp.fc1.weight": 2}
    for name, dimensions in needed.items():
        if name not in tensors or tensors[name].dim() != dimensions:
            keys = ", ".join(sorted(tensors)[:3])
            raise UserError(f"{file}: another architecture: it has no {name} of {dimensions} axes (has {keys}); {FITS}")
    kernel = tensors["encoder.patch_embed.proj.weight"]
    width, patch_size = kernel.shape[0], kernel.shape[-1]
    options: dict[str, Any] = {
        "patch_size": patch_size,
        "width": width,
        "depth": _depth(tensors, ENCODER),
        "mlp_ratio": _mlp_ratio(tensors, ENCODER, width),
        "qkv_bias": "encoder.blocks.0.attn.qkv.bias" in tensors,
        "layer_scale": 1.0 if "encoder.blocks.0.ls1.gamma" in tensors else None,
        "relative_positions": "encoder.blocks.0.attn.relative_position_bias_table" in tensors,
        "positions": _positions(tensors, patch_size, size),
    }
    if has_decoder:
        decoder_width = tensors["decoder.embed.weight"].shape[0]
        if (ratio := _mlp_ratio(tensors, DECODER, decoder_width)) != options["mlp_ratio"]:
            options["decoder_mlp_ratio"] = ratio
        if "decoder.cls_token" in tensors:
            options["decoder_class_token"] = "constant"
        options |= {"decoder_width": decoder_width, "decoder_depth": _depth(tensors, DECODER)}
    else:
        options["size"] = next((name for name, named in SIZES.items() if width <= named.width), "huge")
    return options


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    numbers = [re.match(rf"{re.escape(prefix)}blocks\.(\d+)\.", name) for name in tensors]
    return 1 + max(int(number[1]) for number in numbers if number)


def _mlp_ratio(tensors: Mapping[str, Tensor], prefix: str, width: int) -> float:
    """Return a ratio that `int(width * ratio)` turns into the hidden width again."""
    hidden = tensors[f"{prefix}blocks.0.mlp.fc1.weight"].shape[0]
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _positions(tensors: Mapping[str, Tensor], patch_size: int, size: Size | None) -> str:
    """Return "sincos" where the codes, of encoder and decoder, are the fixed ones of MAE, else "learned"."""
    held = [tensors[name] for name in ("encoder.pos_embed", "decoder.pos_embed") if name in tensors]
    if size is None or min(size) < 1 or any(codes.shape[-1] % 4 for codes in held):
        return "learned"
    grid = (size[0] // patch_size, size[1] // patch_size)
    return "sincos" if all(codes.is_meta or _are_fixed(codes, grid) for codes in held) else "learned"


def _are_fixed(codes: Tensor, grid: Size) -> bool:
    if codes.shape[1:-1] != (1 + grid[0] * grid[1],):
        return False
    return float((sincos_positions(grid, codes.shape[-1]).to(codes) - codes).abs().max()) <= SINCOS_TOLERANCE
