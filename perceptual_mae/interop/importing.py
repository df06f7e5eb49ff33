"""A run folder of somebody else's weights: what every command that opens a run takes."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceptual_mae.config.layers import Merged, find_layer, list_methods, read_yaml
from perceptual_mae.config.own_kinds import EVERYTHING
from perceptual_mae.config.parsing import RunConfig, parse_config
from perceptual_mae.errors import UserError
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder, count_parameters
from perceptual_mae.interop.pretrained import Pretrained, complete, open_pretrained
from perceptual_mae.interop.stated import Settings
from perceptual_mae.run import checkpoint, folder


@dataclass(frozen=True)
class Imported:
    """What came of an import: the generator, its configuration, and notes for whoever asked for it."""

    pretrained: Pretrained
    config: RunConfig
    generator: MaskedAutoencoder
    settings: Settings
    notes: tuple[str, ...]

    def summary(self) -> list[str]:
        """Return lines on what was read: form, network, images, and what was not taken."""
        encoder, (weights, with_positions) = self.generator.encoder, count_parameters(self.generator)
        height, width = self.generator.image_size
        parts = "encoder and decoder" if self.pretrained.has_decoder else "encoder alone"
        options = self.pretrained.options(self.settings)
        return [
            f"{self.pretrained.file}: {self.pretrained.form}, {parts}, {len(self.pretrained.tensors)} tensors taken",
            f"encoder: {len(encoder.blocks)} blocks of width {encoder.width}, {self.settings.heads} heads, "
            f"{encoder.patch_size}-pixel patches of {height}x{width} images, {options['positions']} positions, "
            f"LayerNorm epsilon {self.settings.layer_norm_eps:g}",
            f"images: mean {list(self.settings.mean or ())}, std {list(self.settings.std or ())}",
            f"generator: {weights:,} parameters, {with_positions:,} with fixed positions",
            *self.notes,
        ]


def import_weights(source: Path, out: Path, layers: Sequence[str] = (), given: Settings | None = None) -> Imported:
    """Write the run folder `out` of a file or folder of weights; return what came of it.

    layers: recipes, YAML files and overrides for the data, masking and training of the new run; the generator's form
    and the images' size, mean and std are those of the weights. given: settings that the file does not state. Raises
    UserError, and then writes nothing.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is in use; choose an empty folder with --out")
    pretrained = open_pretrained(source)
    settings, notes = complete(pretrained, given or Settings())
    generator = pretrained.generator(settings)
    config = _config(pretrained, settings, layers)
    if not pretrained.has_decoder:
        notes.append("the decoder is drawn anew: score the representation, or train a decoder with pmae sharpen")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        folder.describe(partial, config, "none", "no", pretrained.origin() | {folder.IMPORTED: True})
        metadata = {"step": 0, "images_seen": 0, "imported_from": pretrained.origin()}
        checkpoint.save(partial / "checkpoints", 0, {"generator": generator.state_dict()}, metadata)
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Imported(pretrained, config, generator, settings, (*pretrained.notes, *notes))


def _config(pretrained: Pretrained, settings: Settings, layers: Sequence[str]) -> RunConfig:
    """Return the configuration of a run with this network: a plain MAE unless the layers say otherwise."""
    merged, methods = Merged(), {method.name for method in list_methods()}
    shows_all = pretrained.form == "diffusers"
    plain = "mse_norm_pix" if settings.norm_pix else "l1" if shows_all else "mse"  # mse is of hidden patches
    for layer in (plain, *layers):
        if "=" in layer:
            continue
        values = read_yaml(find_layer(layer))
        if layer in methods:
            values.pop("generator", None)  # its form is that of the weights
        merged.merge(values, layer)
    merged.values.pop("generator", None)
    height, width = settings.image_size or (0, 0)
    forced: dict[str, Any] = {
        "generator": pretrained.options(settings),
        "data": {
            "image_size": height if height == width else [height, width],
            "mean": list(settings.mean or ()),
            "std": list(settings.std or ()),
        },
    }
    if settings.mask_ratio is not None:
        forced["masking"] = {"ratio": settings.mask_ratio}
    merged.merge(forced, str(pretrained.file))
    for argument in layers:
        if "=" in argument:
            key = argument.partition("=")[0].strip()
            decided = ("data.image_size", "data.mean", "data.std", *(["masking.ratio"] if shows_all else []))
            if key.startswith("generator.") or key in decided:
                raise UserError(f"{argument}: {key} follows from the weights; leave it out (see pmae import --help)")
            merged.override(argument)
    return parse_config(merged.values, merged.origins, trust=EVERYTHING)  # the user typed the layers
