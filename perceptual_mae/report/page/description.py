"""What was trained: in a sentence, as a table of its properties, and as configurations with what differs marked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from perceptual_mae.config.build import final_ratio
from perceptual_mae.config.layers import flatten
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.generator.sizes import SIZES, Architecture
from perceptual_mae.report.methods import method_of
from perceptual_mae.run.folder import resolved

ABSENT = "-"


def architecture_of(config: RunConfig) -> Architecture:
    """Return the sizes of a configuration's generator, those of its named size where none are stated."""
    options = config.generator.options()
    stated = {name: value for name in Architecture.__annotations__ if (value := options.get(name)) is not None}
    return replace(SIZES[config.generator.size], **stated)


def sentence(name: str, config: RunConfig, images_seen: int, steps: int, is_finished: bool) -> str:
    """Say in words what was trained on what, for how long and with which losses."""
    height, width = config.data.size
    method, sizes = method_of(config), architecture_of(config)
    title = f"{name} ({method.title})" if method and method.title != name else name
    changed = f", other than the shipped method in {', '.join(method.changed)}" if method and method.changed else ""
    budget = f"{images_seen:,} images in {steps:,} steps of {config.training.batch_size}"
    state = f"was trained on {budget}" if is_finished else f"is unfinished; it has been trained on {budget}"
    if not steps:
        state = "has not been trained here; its configuration names training"
    losses = f"{'losses' if len(dict(config.losses.items())) > 1 else 'loss'} {losses_in_words(config)}"
    return (
        f"{title} is a masked autoencoder{changed}: an encoder of {sizes.depth} blocks, {sizes.width} wide, is shown "
        f"{1 - final_ratio(config.masking):.0%} of the {sizes.patch_size}-pixel patches of {config.data.kind} images "
        f"of {width}x{height} pixels, and a decoder of {sizes.decoder_depth} blocks paints the rest. It {state} "
        f"with the {losses}, {_adversary(config)}."
    )


def properties_of(
    config: RunConfig, environment: Mapping[str, Any], steps: int, images_seen: int, is_finished: bool
) -> dict[str, str]:
    """Return the properties of a run by name, "" for those that it has not."""
    method, sizes, training = method_of(config), architecture_of(config), config.training
    height, width = config.data.size
    properties = {
        "method": method.title if method else "none of the shipped ones",
        "state": "finished" if is_finished else f"unfinished, after {steps:,} steps",
        "images": f"{config.data.kind}, {width}x{height} px",
        "hidden": f"{final_ratio(config.masking):.0%}, {config.masking.kind} masks",
        "encoder": f"{sizes.depth} blocks, width {sizes.width}, {sizes.heads} heads, patches of {sizes.patch_size} px",
        "decoder": f"{sizes.decoder_depth} blocks, width {sizes.decoder_width}, {sizes.decoder_heads} heads",
        "losses": losses_in_words(config),
        "discriminator": config.discriminator.kind if config.discriminator else "",
        "augmentation of the discriminator's images": config.augment.kind if config.augment else "",
        "penalties": ", ".join(name for name, options in config.penalties.root.items() if options is not None),
        "budget": f"{images_seen:,} images seen, {steps:,} steps of {training.batch_size}, {training.epochs} epochs",
        "seed": str(training.seed),
    }
    device, versions = environment.get("device"), environment.get("versions")
    properties["device"] = f"{device}, precision {environment.get('precision')}" if device else ""
    known = versions if isinstance(versions, dict) else {}
    properties["versions"] = ", ".join(f"{name} {known[name]}" for name in ("perceptual-mae", "torch") if name in known)
    properties["changed on the way"] = "; ".join(_history(environment.get("history")))
    return properties


def losses_in_words(config: RunConfig) -> str:
    """Return the terms with their weights and phases."""
    return ", ".join(
        f"{name} ({', '.join([_weight(section.weight), *_phase(section.when)])})"
        for name, section in config.losses.items()
    )


def rows_of(properties: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return rows of a table with a value for each run, and whether they differ; rows without a value are left out."""
    keys = dict.fromkeys(key for each in properties for key in each)
    rows = [
        (key, [each.get(key) or ABSENT for each in properties])
        for key in keys
        if any(each.get(key) for each in properties)
    ]
    return [{"key": key, "values": values, "differs": len(set(values)) > 1} for key, values in rows]


def configuration_of(config: RunConfig) -> dict[str, str]:
    """Return the dotted keys of a configuration with their values as they would be typed."""
    flat = flatten(resolved(config))
    return {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in flat}


def loading_code(path: Path) -> str:
    """Return the lines that load a run's encoder."""
    return (
        "from perceptual_mae import Run\n\n"
        f"encoder = Run({str(path)!r}).generator().encoder\n"
        "tokens = encoder(images)  # (B, C, H, W) in [0, 1] -> (B, 1 + L, D), the class token first"
    )


def _weight(weight: Any) -> str:
    if isinstance(weight, int | float):
        return f"{weight:g}"
    if (balanced := getattr(weight, "balanced", None)) is not None:
        return f"balanced to {balanced:g}"
    return json.dumps(weight.model_dump() if hasattr(weight, "model_dump") else str(weight), default=str)


def _phase(when: Any) -> list[str]:
    if when == "always":
        return []
    if isinstance(when, str):
        return [when.replace("_", " ")]
    return [", ".join(f"{key.replace('_', ' ')} {value}" for key, value in dict(vars(when)).items())]


def _adversary(config: RunConfig) -> str:
    if config.discriminator is None:
        return "without a discriminator"
    augment = f" behind {config.augment.kind} augmentation" if config.augment else ""
    return f"against a discriminator of kind {config.discriminator.kind}{augment}"


def _history(entries: Any) -> list[str]:
    lines = []
    for entry in entries if isinstance(entries, list) else []:
        changed = entry.get("changed") if isinstance(entry, dict) else None
        for key, values in changed.items() if isinstance(changed, dict) else ():
            words = [json.dumps(value, default=str) for value in values] if isinstance(values, list) else [str(values)]
            lines.append(f"step {entry.get('step')}: {key} {' -> '.join(words)}")
    return lines
