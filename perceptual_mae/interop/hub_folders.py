"""Folders for timm and transformers, and our own: weights as safetensors, and JSON files that say what they are of."""

import copy
from typing import Any

import torch
from torch import Tensor

from perceptual_mae.errors import UserError
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.images import patchify
from perceptual_mae.interop.exported import Export, Proof, difference, save_weights, write_json
from perceptual_mae.interop.key_maps import OF_THE_DATA, to_mae, to_transformers

MAE_EPSILON = 1e-6


def misfits_of_timm(export: Export) -> list[str]:
    """Name what timm's VisionTransformer cannot compute."""
    generator = export.generator
    misfits = ["generator.relative_positions"] if generator.encoder.relative_positions else []
    epsilon = generator.layer_norm_eps
    return misfits + ([f"generator.layer_norm_eps {epsilon:g}, timm's is 1e-6"] if epsilon != MAE_EPSILON else [])


def write_timm(export: Export) -> None:
    """Write what `timm.create_model("local-dir:FOLDER", pretrained=True)` opens: the encoder, no more.

    A whole MAE would be taken for another model, by its mask token.
    """
    mean, std = export.statistics
    encoder, (height, width) = export.generator.encoder, export.generator.image_size
    options: dict[str, Any] = {
        "img_size": [height, width],
        "patch_size": encoder.patch_size,
        "in_chans": encoder.channels,
        "embed_dim": encoder.width,
        "depth": len(encoder.blocks),
        "num_heads": encoder.num_heads,
        "mlp_ratio": export.options["mlp_ratio"],
        "qkv_bias": export.options["qkv_bias"],
        "num_classes": 0,
        "global_pool": "token",
    }
    if export.options["layer_scale"] is not None:
        options["init_values"] = export.options["layer_scale"]
    config = {
        "architecture": "vit_base_patch16_224",  # its values are all replaced by model_args
        "num_classes": 0,
        "num_features": encoder.width,
        "global_pool": "token",
        "model_args": options,
        "pretrained_cfg": {
            "input_size": [encoder.channels, height, width],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": mean,
            "std": std,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    write_json(export.folder / "config.json", config)
    state = {name: value for name, value in export.state.items() if name not in OF_THE_DATA}
    save_weights(export.folder, to_mae(state))


def prove_timm(export: Export, images: Tensor) -> Proof:
    """Compare the tokens (B, 1+L, D) of timm's model with ours, in float64."""
    import timm

    theirs = timm.create_model(f"local-dir:{export.folder}", pretrained=True).eval().double()
    ours, inputs = _in_float64(export.generator, images)
    return difference(f"timm {timm.__version__}", theirs.forward_features(inputs), ours.encoder(images.double()))


def misfits_of_transformers(export: Export) -> list[str]:
    """Name what ViT, or with a decoder ViTMAE, cannot compute."""
    generator, options = export.generator, export.options
    misfits = ["generator.relative_positions"] if generator.encoder.relative_positions else []
    misfits += ["generator.layer_scale"] if options["layer_scale"] is not None else []
    if export.with_decoder:
        misfits += [f"generator.{name}" for name in ("skips", "rgb_heads", "encoder_mask_tokens") if options[name]]
        misfits += ["generator.decoder_attention: cross"] if generator.decoder.is_cross else []
        is_constant = generator.decoder.cls_token is not None
        misfits += ["generator.decoder_class_token: constant"] if is_constant else []
        height, width = generator.image_size
        misfits += [f"images of {height}x{width} with a decoder"] if height != width else []
    return misfits


def write_transformers(export: Export) -> None:
    """Write what ViTModel opens and, with a decoder, ViTMAEForPreTraining: names of 4.x, which 5.x reads, too."""
    generator, encoder, decoder = export.generator, export.generator.encoder, export.generator.decoder
    (height, width), ratio = generator.image_size, export.options["mlp_ratio"]
    mean, std = export.statistics
    config: dict[str, Any] = {
        "model_type": "vit_mae" if export.with_decoder else "vit",
        "architectures": ["ViTMAEForPreTraining" if export.with_decoder else "ViTModel"],
        "hidden_size": encoder.width,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": int(encoder.width * ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": generator.layer_norm_eps,  # the libraries' own default is another one
        "image_size": height if height == width else [height, width],
        "patch_size": encoder.patch_size,
        "num_channels": encoder.channels,
        "qkv_bias": export.options["qkv_bias"],
        "torch_dtype": "float32",
    }
    if export.with_decoder:
        decoder_width, own_ratio = decoder.embed.out_features, export.options["decoder_mlp_ratio"]
        config |= {
            "decoder_hidden_size": decoder_width,
            "decoder_num_hidden_layers": len(decoder.blocks),
            "decoder_num_attention_heads": decoder.num_heads,
            "decoder_intermediate_size": int(decoder_width * (ratio if own_ratio is None else own_ratio)),
            "mask_ratio": export.mask_ratio,
            "norm_pix_loss": generator.norm_pix,
        }
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    write_json(export.folder / "config.json", config)
    write_json(export.folder / "preprocessor_config.json", processor)
    save_weights(export.folder, to_transformers(export.state, prefix="vit." if export.with_decoder else ""))


def prove_transformers(export: Export, images: Tensor) -> Proof:
    """Compare ViTModel's tokens with ours in float64, and with a decoder the predictions of ViTMAE under its masks."""
    import transformers as library

    transformers: Any = library  # its types know nothing of output_loading_info
    transformers.utils.logging.disable_progress_bar()
    ours, inputs = _in_float64(export.generator, images)
    version = f"transformers {transformers.__version__}"
    if not export.with_decoder:
        vit, report = transformers.ViTModel.from_pretrained(
            export.folder, add_pooling_layer=False, output_loading_info=True
        )
        _check_loaded(report, "ViTModel")
        tokens = vit.eval().double()(inputs).last_hidden_state
        return difference(f"{version} ViTModel", tokens, ours.encoder(images.double()))
    mae, report = transformers.ViTMAEForPreTraining.from_pretrained(export.folder, output_loading_info=True)
    _check_loaded(report, "ViTMAEForPreTraining")
    patches = ours.grid[0] * ours.grid[1]
    noise = torch.rand(len(images), patches, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = mae.eval().double()(inputs, noise=noise)
    prediction = ours(images.double(), theirs.mask.bool()).prediction[0]
    return difference(f"{version} ViTMAEForPreTraining", theirs.logits, patchify(prediction, ours.patch_size))


def write_safetensors(export: Export) -> None:
    """Write tensors under our names, and generator.json, with which `pmae import` and `init_from` need no options."""
    mean, std = export.statistics
    height, width = export.generator.image_size
    encoder, decoder = export.generator.encoder, export.generator.decoder
    shapes = {
        "patch_size": encoder.patch_size,
        "width": encoder.width,
        "depth": len(encoder.blocks),
        "heads": encoder.num_heads,
        "decoder_width": decoder.embed.out_features,
        "decoder_depth": len(decoder.blocks),
        "decoder_heads": decoder.num_heads,
    }
    content = {
        "form": "perceptual-mae",
        "parts": "generator" if export.with_decoder else "encoder",
        "options": {**export.options, **shapes},
        "image_size": [height, width],
        "mean": mean,
        "std": std,
        "mask_ratio": export.mask_ratio,
    }
    write_json(export.folder / "generator.json", content)
    state = {name: value for name, value in export.state.items() if name not in OF_THE_DATA}
    save_weights(export.folder, state if export.with_decoder else to_mae(state))


def prove_safetensors(export: Export, images: Tensor) -> Proof:
    """Compare outputs of the files, read as any others' are, with ours in float64."""
    from perceptual_mae.interop.pretrained import complete, open_pretrained
    from perceptual_mae.interop.stated import Settings

    pretrained = open_pretrained(export.folder)
    loaded, _ = _in_float64(pretrained.generator(complete(pretrained, Settings())[0]), images)
    ours, _ = _in_float64(export.generator, images)
    if not export.with_decoder:
        return difference("safetensors", loaded.encoder(images.double()), ours.encoder(images.double()))
    mask = torch.zeros(len(images), ours.grid[0] * ours.grid[1], dtype=torch.bool)
    mask[:, ::2] = True
    outputs = (network(images.double(), mask).pyramid[0] for network in (loaded, ours))
    return difference("safetensors", *outputs)


def _in_float64(generator: MaskedAutoencoder, images: Tensor) -> tuple[MaskedAutoencoder, Tensor]:
    """Return a copy of the generator in float64, and images (B, C, H, W) in [0, 1] normalised by it."""
    exact = copy.deepcopy(generator).double()
    return exact, exact.encoder.normalise(images.double())


def _check_loaded(report: dict[str, Any], network: str) -> None:
    """Refuse what transformers only warns of: tensors that it draws anew, or leaves out."""
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing or unexpected:
        raise UserError(f"{network} does not load the export: missing {missing[:3]}, unexpected {unexpected[:3]}")
