"""What files of others say of their networks besides the tensors, and what they leave unsaid."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perceptual_mae.errors import UserError
from perceptual_mae.images import Size
from perceptual_mae.interop.reading import RawFile

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_HEADS = {"base": 12, "large": 16, "huge": 16, "small": 6, "tiny": 3}
_MAE_DECODER_HEADS = 16
_HUB_DEFAULTS: Mapping[str, Any] = {
    "num_attention_heads": 12,
    "decoder_num_attention_heads": 16,
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "norm_pix_loss": False,
    "hidden_act": "gelu",
}
"""What a config.json of transformers means by leaving a key out (ViTConfig, ViTMAEConfig)."""
_RAE_DEFAULTS: Mapping[str, Any] = {"decoder_num_attention_heads": 16, "encoder_input_size": 224}
_RAE_HEAD, _RAE_EPSILON = 64, 1e-12
"""Channels of an attention head in the encoder of AutoencoderRAE, and the epsilon of all its norms: both are fixed."""


@dataclass(frozen=True)
class Settings:
    """What shapes of tensors do not show; None is not known.

    generator: all options of ours, from our own exports. no_embed_class: positions are of patches alone (timm).
    """

    heads: int | None = None
    decoder_heads: int | None = None
    norm_pix: bool | None = None
    layer_norm_eps: float | None = None
    image_size: Size | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    mask_ratio: float | None = None
    generator: dict[str, Any] | None = None
    no_embed_class: bool | None = None


def settings_of(raw: RawFile, form: str, tensors: Mapping[str, Tensor]) -> Settings:
    """Return what a file of a form says. Raises UserError where it says what no network here computes."""
    try:
        if form.startswith("perceptual-mae"):
            return _of_our_own(raw, tensors)
        if form == "transformers":
            return _of_transformers(raw)
        if form == "timm":
            return _of_timm(raw)
        if form == "diffusers":
            return _of_diffusers(raw, tensors)
        return _of_mae(raw)
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as failure:
        raise UserError(
            f"{raw.file.parent}: its JSON files do not say what {form} says of a network ({failure}); copy it whole"
        ) from failure


def image_size_of(settings: Settings, tensors: Mapping[str, Tensor]) -> Size | None:
    """Return the size of the images, where it is stated or positions are those of a square; else None."""
    codes, kernel = tensors.get("encoder.pos_embed"), tensors.get("encoder.patch_embed.proj.weight")
    if settings.image_size is not None or codes is None or kernel is None:
        return settings.image_size
    side = math.isqrt(codes.shape[1] - 1)
    return (side * kernel.shape[-1],) * 2 if side * side == codes.shape[1] - 1 else None


def proposal(name: str, tensors: Mapping[str, Tensor]) -> str:
    """Return an option of `pmae import` as the published models of facebookresearch/mae have it."""
    width = tensors["encoder.cls_token"].shape[-1]
    values = {
        "heads": f"--heads {16 if width == 1280 else max(1, width // 64)}",
        "decoder_heads": f"--decoder-heads {_MAE_DECODER_HEADS}",
        "norm_pix": "--norm-pix",
        "layer_norm_eps": "--layer-norm-eps 1e-6",
        "image_size": "--image-size 224",
        "mean": f"--mean {','.join(map(str, IMAGENET_MEAN))}",
        "std": f"--std {','.join(map(str, IMAGENET_STD))}",
    }
    return values[name]


def _of_mae(raw: RawFile) -> Settings:
    """Read the training script's options of a full checkpoint; a published file has none."""
    args = raw.args
    model = str(args.get("model", ""))
    is_pretraining = model.startswith("mae_")
    heads = next((count for size, count in _HEADS.items() if f"vit_{size}_" in model), None)
    side = args.get("input_size")
    return Settings(
        heads=heads,
        decoder_heads=_MAE_DECODER_HEADS if is_pretraining and heads else None,
        norm_pix=args.get("norm_pix_loss") if isinstance(args.get("norm_pix_loss"), bool) else None,
        image_size=(side, side) if isinstance(side, int) else None,
        mask_ratio=args.get("mask_ratio") if isinstance(args.get("mask_ratio"), float) else None,
    )


def _of_transformers(raw: RawFile) -> Settings:
    """Read config.json, where a key that is left out has the default of transformers, and preprocessor_config.json."""
    if not raw.config:
        return Settings(image_size=None)
    config = {**_HUB_DEFAULTS, **raw.config}
    if config.get("model_type") not in ("vit_mae", "vit") or config["hidden_act"] != "gelu":
        raise UserError(
            f"{raw.file.parent / 'config.json'}: model_type {config.get('model_type')!r} with hidden_act "
            f"{config['hidden_act']!r}; vit_mae and vit with gelu can be imported"
        )
    is_mae = config["model_type"] == "vit_mae"
    mean, std = raw.preprocessor.get("image_mean"), raw.preprocessor.get("image_std")
    return Settings(
        heads=int(config["num_attention_heads"]),
        decoder_heads=int(config["decoder_num_attention_heads"]) if is_mae else None,
        norm_pix=bool(config["norm_pix_loss"]) if is_mae else None,
        layer_norm_eps=float(config["layer_norm_eps"]),
        image_size=_size(config["image_size"]),
        mean=tuple(map(float, mean)) if mean else None,
        std=tuple(map(float, std)) if std else None,
        mask_ratio=float(config["mask_ratio"]) if is_mae and "mask_ratio" in config else None,
    )


def _of_diffusers(raw: RawFile, tensors: Mapping[str, Tensor]) -> Settings:
    """Read config.json of an AutoencoderRAE; mean and standard deviation are in its file. It hides nothing."""
    config, token = {**_RAE_DEFAULTS, **raw.config}, tensors.get("encoder.cls_token")
    return Settings(
        heads=None if token is None else max(1, token.shape[-1] // _RAE_HEAD),
        decoder_heads=int(config["decoder_num_attention_heads"]),
        norm_pix=False,
        layer_norm_eps=_RAE_EPSILON,
        image_size=_size(config["encoder_input_size"]),
        mask_ratio=0.0,
        **_statistics(tensors),
    )


def _of_timm(raw: RawFile) -> Settings:
    """Read config.json of a folder; what it leaves to the architecture's name, timm's own network of it says."""
    config = raw.config
    if "architecture" not in config:
        return Settings()
    cfg = config.get("pretrained_cfg") or {}
    network = _built_by_timm(raw, str(config["architecture"]), dict(config.get("model_args") or {}))
    return Settings(
        heads=int(network.blocks[0].attn.num_heads),
        layer_norm_eps=float(network.blocks[0].norm1.eps),
        image_size=_size(network.patch_embed.img_size),
        no_embed_class=bool(network.no_embed_class),
        mean=tuple(map(float, cfg["mean"])) if cfg.get("mean") else None,
        std=tuple(map(float, cfg["std"])) if cfg.get("std") else None,
    )


def _built_by_timm(raw: RawFile, architecture: str, options: dict[str, Any]) -> Any:
    """Return timm's network, built without memory for its weights."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    place = raw.file.parent / "config.json"
    if not timm.is_model(architecture):  # a name such as hf-hub:... would be downloaded
        raise UserError(f"{place}: timm has no architecture {architecture!r}; vision transformers can be imported")
    try:
        with torch.device("meta"):
            network = timm.create_model(architecture, pretrained=False, **options)
    except Exception as failure:
        raise UserError(f"{place}: timm cannot build {architecture!r}: {' '.join(str(failure).split())}") from failure
    if type(network) is not VisionTransformer:
        raise UserError(f"{place}: {architecture!r} is a {type(network).__name__}; plain vision transformers fit")
    return network


def _of_our_own(raw: RawFile, tensors: Mapping[str, Tensor]) -> Settings:
    """Read generator.json of `pmae export --to safetensors`; without it, the image statistics may be tensors."""
    if raw.generator:
        stated = raw.generator
        options = dict(stated["options"])
        return Settings(
            heads=options.pop("heads"),
            decoder_heads=options.pop("decoder_heads"),
            norm_pix=options.pop("norm_pix"),
            layer_norm_eps=options.pop("layer_norm_eps"),
            image_size=_size(stated["image_size"]),
            mean=tuple(map(float, stated["mean"])),
            std=tuple(map(float, stated["std"])),
            mask_ratio=stated.get("mask_ratio"),
            generator=options,
        )
    return Settings(**_statistics(tensors))


def _statistics(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return mean and std of the images where they are among the tensors, in as few digits as give the same float32."""
    held = ((name, tensors.get(f"encoder.{name}")) for name in ("mean", "std"))
    return {
        name: tuple(float(str(each)) for each in value.flatten().numpy()) for name, value in held if value is not None
    }


def _size(value: Any) -> Size:
    height, width = (value, value) if isinstance(value, int) else value
    if min(size := (int(height), int(width))) < 1:
        raise ValueError(f"images of {value} pixels")
    return size
