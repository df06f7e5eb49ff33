"""The configuration of a run that trains the decoder of a finished one adversarially and leaves its encoder alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from perceptual_mae.config.from_signature import refuse_untrusted
from perceptual_mae.config.layers import Merged, find_layer, list_methods, read_yaml
from perceptual_mae.config.own_kinds import EVERYTHING, Trust
from perceptual_mae.config.parsing import RunConfig, parse_config
from perceptual_mae.errors import UserError
from perceptual_mae.run import checkpoint
from perceptual_mae.run.folder import CONFIG, is_imported
from perceptual_mae.run.run import Run

METHOD = "recommended"
"""Whose losses and discriminator are taken where no layer is named."""
SHARE = 0.15
EPOCHS = 4
"""Even and odd ones, twice: terms may be on in either."""

Decoder = Literal["kept", "fresh"]

_SCHEDULE: Mapping[str, Any] = {
    "schedule": {"warmup_ratio": 0.05, "warmup_epochs": None},
    "evaluation": {"every": 0},
}


def sharpening_config(
    source: Path,
    arguments: Sequence[str],
    *,
    decoder: Decoder = "kept",
    share: float | None = None,
    trust_code: bool = False,
) -> RunConfig:
    """Return the configuration of a run whose encoder is that of `source` and does not learn.

    source: a run's folder or a checkpoint in it, whose configuration the new one starts from, or a file of an exported
    encoder, whose size and images the arguments then say. arguments: layers and overrides; of a method all but the
    generator's form is taken. share: images trained on, relative to those of the run (None: 0.15); of imported weights
    these are not known: a layer or an override gives training.epochs. trust_code: import classes of somebody's own that
    the run's folder names. Raises UserError.
    """
    layers = [argument for argument in arguments if "=" not in argument]
    methods = {method.name for method in list_methods()}
    run, merged = None if source.is_file() else Run(source, trust_code=trust_code), Merged()
    if run is None:
        if decoder == "kept":
            raise UserError(f"{source}: is no run's folder; give --decoder fresh, or make a run of it with pmae import")
        if not layers:
            raise UserError(f"{source}: name the recipe of its images and size, such as cifar10 (see pmae configs)")
    else:
        if decoder == "kept" and run.config.generator.norm_pix:
            raise UserError(
                f"{source}: its decoder predicts normalised patches (generator.norm_pix), which no discriminator can "
                "be shown; give --decoder fresh"
            )
        merged.start_from(read_yaml(run.path / CONFIG))
    has_length = any(argument.partition("=")[0].strip() == "training.epochs" for argument in arguments)
    for layer in layers if methods & set(layers) else [*layers, METHOD]:
        values = read_yaml(find_layer(layer))
        if run is not None and layer in methods:
            values.pop("generator", None)  # its form is the run's
        merged.merge(values, layer)
        has_length = has_length or "epochs" in (values.get("training") or {})
    merged.merge(_frozen(source, decoder), "sharpen")
    if run is not None:
        merged.merge(_SCHEDULE, "sharpen")
        if not is_imported(run.path):
            merged.merge(_length(run, SHARE if share is None else share), "sharpen")
        elif share is not None or not has_length:
            raise UserError(
                f"{run.path}: how long imported weights were trained is not known, and so no share of it; give "
                "training.epochs, such as training.epochs=16, and no --share"
            )
    for argument in arguments:
        if "=" in argument:
            merged.override(argument)
    origin = "configuration" if run is None else str(run.path / CONFIG)
    trust = EVERYTHING if trust_code else Trust(merged.typed_kinds)
    config = parse_config(merged.values, merged.origins, origin=origin, trust=trust)
    refuse_untrusted(config)
    return config


def _frozen(source: Path, decoder: Decoder) -> Mapping[str, Any]:
    """Return what makes a run sharpen another."""
    start = {"init_from": str(source), "init_decoder": decoder == "kept", "freeze_encoder": True, "drop_path": 0.0}
    return {"generator": start | ({"norm_pix": False} if decoder == "fresh" else {})}


def _length(run: Run, share: float) -> Mapping[str, Any]:
    """Return how long to train: a share of the run's images, in a few epochs."""
    training = run.config.training
    epoch = training.epoch_images or checkpoint.load_metadata(run.checkpoint).get("training_images")
    epoch = epoch or len(run.config.data.build("train"))  # checkpoints of version 0.1.0 do not say
    images = max(training.batch_size, round(share * training.epochs * epoch / EPOCHS))
    return {"training": {"epochs": EPOCHS, "epoch_images": images}}
