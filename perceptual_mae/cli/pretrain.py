"""`pmae pretrain`: train, or with --dry-run say what would be trained."""

from pathlib import Path

import torch
import typer
from rich.console import Console

from perceptual_mae.config import build
from perceptual_mae.config.parsing import RunConfig, load_config, to_yaml
from perceptual_mae.errors import UserError
from perceptual_mae.generator.masked_autoencoder import count_parameters
from perceptual_mae.training.initial_encoder import check_start
from perceptual_mae.training.loop import pretrain
from perceptual_mae.training.signals import EXIT_CODE, Interrupted

OPTIMIZER_MOMENTS = 2
"""AdamW and Adam keep two numbers beside each parameter."""


def run(arguments: list[str], out: Path | None, dry_run: bool, fresh: bool) -> None:
    """Train what the layers and overrides describe in `out` (default: runs/ and the layers' names)."""
    config = load_config(arguments)
    out = out or default_folder(arguments)
    if dry_run:
        Console(soft_wrap=True).print(describe(config, out), highlight=False, markup=False)
        return
    try:
        pretrain(config, out, fresh=fresh)
    except Interrupted as stopped:
        Console(stderr=True, soft_wrap=True).print(str(stopped), highlight=False, markup=False)
        raise typer.Exit(EXIT_CODE) from None


def default_folder(arguments: list[str]) -> Path:
    """Return runs/NAME, NAME being the layers' names joined by dashes."""
    layers = [Path(argument).stem for argument in arguments if "=" not in argument]
    return Path("runs") / ("-".join(layers) or "default")


def describe(config: RunConfig, out: Path) -> str:
    """Return the resolved configuration and what follows from it: sizes, steps, learning rate, a checkpoint's size."""
    training = config.training
    with torch.device("meta"):
        generator = build.build_generator(config.generator, config.data.image, config.training.seed)
        discriminator = build.build_discriminator(config.discriminator, config.data.image, config.training.seed)
        networks = build.build_loss_networks(config.losses, config.data.image, discriminator, config.training.seed)
    path_length = build.build_penalty(config.penalties, "path_length", config.data.image, training.batch_size)
    peak, _ = build.generator_adam(config.optimizer, training.batch_size, path_length)
    start = check_start(config, out / "checkpoints")
    weights, with_positions = count_parameters(generator)
    lines = [to_yaml(config).rstrip(), ""]
    lines.append(f"generator: {weights:,} parameters, {with_positions:,} with fixed positions")
    total = weights
    if discriminator is not None:
        judge = sum(parameter.numel() for parameter in discriminator.parameters())
        total += judge
        lines.append(f"discriminator: {judge:,} parameters")
    for name, network in (*networks.fixed.items(), *networks.copies.items()):
        lines.append(f"loss network {name}: {sum(each.numel() for each in network.parameters()):,} fixed parameters")
    if start is not None:
        lines.append(str(start.origin))
    if generator.fallback_heads:
        sizes = ", ".join(f"{height}x{width}" for height, width in generator.fallback_heads)
        lines.append(f"RGB heads in full form, because the patch does not divide there: {sizes}")
    share = training.batch_size // training.accumulation
    lines.append(
        f"effective batch: {training.batch_size} images = {training.accumulation} "
        f"{'micro-batch' if training.accumulation == 1 else 'micro-batches'} x {share}, shared by all processes"
    )
    lines.append(f"learning rate: {peak:g}")
    lines.append(count_steps(config))
    kept = (1 + OPTIMIZER_MOMENTS) * total + (with_positions if training.ema_kimg else 0)
    kept += sum(parameter.numel() for parameter in networks.copies.parameters())
    lines.append(f"one checkpoint: {4 * kept / 1e6:,.1f} MB; {training.keep_last} are kept")
    lines.append(f"would be written to {out}")
    return "\n".join(lines)


def count_steps(config: RunConfig) -> str:
    """Return the number of steps in words; without the data at hand it cannot be told, unless an epoch has a size."""
    try:
        images = len(config.data.build("train"))
    except UserError as mistake:
        return f"steps: unknown, the data cannot be read ({mistake})"
    plan = build.build_plan(config.training, images)
    timetable = build.build_timetable(config.schedule, config.training.epochs, plan.steps_per_epoch)
    return (
        f"steps: {timetable.total_steps:,} = {config.training.epochs} epochs x {plan.steps_per_epoch:,}, "
        f"warm-up {timetable.warmup_steps:,}; {images:,} training images"
    )
