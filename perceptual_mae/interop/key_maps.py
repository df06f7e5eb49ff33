"""Names of tensors in other projects' files, and ours: pure functions on state dicts, one pair for each form.

Ours are those of `MaskedAutoencoder.state_dict()` without `encoder.mean` and `encoder.std`. Values are never changed: a
way there and back is bit-identical. Sources: facebookresearch/mae `models_mae.py`, timm `vision_transformer.py`,
transformers `modeling_vit_mae.py` (names of 4.x on disk and on the hub, of 5.x in memory), diffusers
`autoencoder_rae.py`.
"""

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]

ENCODER, DECODER = "encoder.", "decoder."
OF_THE_DATA = ("encoder.mean", "encoder.std")
"""What of a generator's state is the data's and not learnt."""

_MAE_DECODER = {"mask_token": "mask_token"} | {
    f"decoder_{part}": part for part in ("pos_embed", "embed", "blocks", "norm", "pred")
}
_ENCODER_PARTS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_DECODER_PARTS = {
    "embed": "decoder_embed",
    "mask_token": "mask_token",
    "pos_embed": "decoder_pos_embed",
    "norm": "decoder_norm",
    "pred": "decoder_pred",
}
_BLOCK_PARTS = {
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
"""Ours, then the name of transformers 4.x and that of 5.x in memory."""
_QKV = {part: (f"attention.attention.{part}", f"attention.{part[0]}_proj") for part in ("query", "key", "value")}
_BLOCK = re.compile(r"(?:encoder\.layer|encoder\.layers|layers|decoder_layers|decoder_encoder\.layer)\.(\d+)\.(.+)")
_OF_RAE = {"attention.to_out.0": "attention.o_proj"} | {
    f"attention.to_{part}": f"attention.{part}_proj" for part in "qkv"
}
"""Names in the decoder of AutoencoderRAE, and those of transformers 5.x in memory."""
RAE_CLASS_TOKEN = "decoder.trainable_cls_token"


def from_mae(state: State) -> dict[str, Tensor]:
    """Return tensors of facebookresearch/mae, encoder alone or whole, or of a timm encoder, under our names."""
    return {_of_mae(name): value for name, value in state.items()}


def to_mae(state: State) -> dict[str, Tensor]:
    """Return a generator's tensors under the names of facebookresearch/mae; an encoder's alone are timm's, too."""
    theirs = {ours: name for name, ours in _MAE_DECODER.items()}
    named = {}
    for name, value in _learnt(state):
        package, _, rest = name.partition(".")
        if package == "decoder":
            part, dot, tail = rest.partition(".")
            rest = theirs[part] + dot + tail
        named[rest] = value
    return named


def from_transformers(state: State) -> dict[str, Tensor]:
    """Return tensors of ViTMAE or ViT under our names, queries, keys and values joined (rows in this order).

    Read are the names of 4.x, those of 5.x in memory, and `decoder.decoder_encoder.layer`, which 5.x writes. A name of
    none of them is kept as it is, for the report of what does not fit.
    """
    ours: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        in_decoder = name.startswith(DECODER)
        prefix, rest = (DECODER, name.removeprefix(DECODER)) if in_decoder else (ENCODER, name.removeprefix("vit."))
        if block := _BLOCK.fullmatch(rest):
            part, tail = _split(block[2])
            place = f"{prefix}blocks.{block[1]}."
            if own := _named(part, _BLOCK_PARTS):
                ours[f"{place}{own}.{tail}"] = value
                continue
            if own := _named(part, _QKV):
                joined.setdefault(f"{place}attn.qkv.{tail}", {})[own] = value
                continue
        elif own := _named_part(rest, _DECODER_PARTS if in_decoder else _ENCODER_PARTS):
            ours[prefix + own] = value
            continue
        ours[name] = value
    for name, parts in joined.items():
        if len(parts) == len(_QKV):
            ours[name] = torch.cat([parts[part] for part in _QKV])
        else:
            ours |= {f"{name}.{part}": value for part, value in parts.items()}
    return ours


def to_transformers(state: State, *, prefix: str = "vit.") -> dict[str, Tensor]:
    """Return a generator's tensors under the names of transformers 4.x, which 5.x reads, too.

    prefix: of the encoder's names, "vit." in ViTMAE and "" in ViTModel.
    """
    named: dict[str, Tensor] = {}
    for name, value in _learnt(state):
        package, _, rest = name.partition(".")
        in_decoder = package == "decoder"
        if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", rest):
            layers = "decoder.decoder_layers" if in_decoder else f"{prefix}encoder.layer"
            part, tail = _split(block[2])
            place = f"{layers}.{block[1]}."
            if part == "attn.qkv":
                for (theirs, _), rows in zip(_QKV.values(), value.chunk(len(_QKV)), strict=True):
                    named[f"{place}{theirs}.{tail}"] = rows.clone()
            else:
                named[f"{place}{_BLOCK_PARTS[part][0]}.{tail}"] = value
        else:
            parts = _DECODER_PARTS if in_decoder else _ENCODER_PARTS
            part = next(each for each in parts if rest == each or rest.startswith(f"{each}."))
            named[(DECODER if in_decoder else prefix) + parts[part] + rest.removeprefix(part)] = value
    return named


def from_diffusers(state: State) -> dict[str, Tensor]:
    """Return tensors of AutoencoderRAE with the encoder of ViTMAE under our names.

    Left out are mean and std of the latents, which decoding undoes, and position codes of the decoder, which the
    library does not read.
    """
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        for theirs, others in _OF_RAE.items():
            name = name.replace(f".{theirs}.", f".{others}.")
        named[name.removeprefix(ENCODER)] = value
    own = {f"encoder.{part}": named.pop(f"encoder_{part}") for part in ("mean", "std") if f"encoder_{part}" in named}
    own["decoder.cls_token"] = named.pop(RAE_CLASS_TOKEN)
    for name in ("_latents_mean", "_latents_std", "decoder.decoder_pos_embed"):
        named.pop(name, None)
    return own | from_transformers(named)


def encoder_of(state: State) -> dict[str, Tensor]:
    """Return the encoder's tensors of a generator's state."""
    return {name: value for name, value in state.items() if name.startswith(ENCODER)}


def _of_mae(name: str) -> str:
    part, dot, rest = name.partition(".")
    return f"{DECODER}{_MAE_DECODER[part]}{dot}{rest}" if part in _MAE_DECODER else ENCODER + name


def _learnt(state: State) -> Iterable[tuple[str, Tensor]]:
    return ((name, value) for name, value in state.items() if name not in OF_THE_DATA)


def _split(name: str) -> tuple[str, str]:
    """Split `attn.qkv.weight` into what is named and which of its tensors it is."""
    part, _, tail = name.rpartition(".")
    return part, tail


def _named(part: str, names: Mapping[str, tuple[str, ...]]) -> str | None:
    return next((ours for ours, theirs in names.items() if part in theirs), None)


def _named_part(rest: str, parts: Mapping[str, str]) -> str | None:
    for ours, theirs in parts.items():
        if rest == theirs or rest.startswith(f"{theirs}."):
            return ours + rest.removeprefix(theirs)
    return None


FROM: Mapping[str, Callable[[State], dict[str, Tensor]]] = {
    "facebookresearch/mae": from_mae,
    "timm": from_mae,
    "transformers": from_transformers,
    "diffusers": from_diffusers,
    "perceptual-mae": dict,
    "perceptual-mae encoder": from_mae,
}
"""By the form of a file, how its names become ours."""
