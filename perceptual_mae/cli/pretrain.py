"""`pmae pretrain`: train, or with --dry-run print what would be trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perceptual_mae.cli.options import Layers, TrustCode, check_layers, check_run, load_layers
from perceptual_mae.cli.output import print_lines
from perceptual_mae.errors import UserError

if TYPE_CHECKING:
    from perceptual_mae.config.parsing import RunConfig
    from perceptual_mae.training.branching import Branch

FEW_IMAGES, LARGE_SIDE = 64, 128
"""Images of a step, and pixels of their side: runs of larger images are taken for runs on a GPU."""


def pretrain_command(
    arguments: Layers,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; the same command again resumes it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and stop.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in an empty folder.")] = False,
    from_checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="STEP|newest",
            help="Branch: LAYER is a run folder, and a new run goes on from that checkpoint of it with other values.",
        ),
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Train a masked autoencoder, e.g. pmae pretrain cifar10 ls_gan_p training.epochs=50 --out runs/a.

    To go on from a checkpoint of a run with other values: pmae pretrain runs/a --from-checkpoint newest
    optimizer.lr=1e-4 --out runs/b.
    """
    if from_checkpoint is None:
        check_layers(arguments)
        run(load_layers(arguments), out or default_folder(arguments), dry_run=dry_run, fresh=fresh)
        return
    source, *overrides = arguments
    check_run(Path(source))
    from perceptual_mae.training.branching import open_branch

    out = out or Path(f"{source.rstrip('/')}-from-{from_checkpoint}")
    config, branch = open_branch(Path(source), from_checkpoint, overrides, out, trust_code=trust_code)
    run(config, out, dry_run=dry_run, fresh=fresh, branch=branch)


def run(config: "RunConfig", out: Path, *, dry_run: bool, fresh: bool, branch: "Branch | None" = None) -> None:
    """Train in a folder, or print what would be trained; leave with the code of a stopped run where it is stopped."""
    from perceptual_mae.run.signals import EXIT_CODE, Interrupted
    from perceptual_mae.training.loop import pretrain

    if dry_run:
        print_lines(describe(config, out, branch))
        return
    try:
        pretrain(config, out, fresh=fresh, branch=branch)
    except Interrupted as stopped:
        print_lines(str(stopped), to_stderr=True)
        raise typer.Exit(EXIT_CODE) from None


def default_folder(arguments: list[str]) -> Path:
    """Return runs/NAME, NAME being the layers' names joined by dashes."""
    layers = [Path(argument).stem for argument in arguments if "=" not in argument]
    return Path("runs") / ("-".join(layers) or "default")


def describe(config: "RunConfig", out: Path, branch: "Branch | None" = None) -> str:
    """Return the resolved configuration and what follows from it: sizes, steps, learning rate, a checkpoint's size."""
    import torch

    from perceptual_mae.config import build
    from perceptual_mae.config.parsing import to_yaml
    from perceptual_mae.generator.masked_autoencoder import count_parameters
    from perceptual_mae.training.initial_discriminator import check_discriminator_start
    from perceptual_mae.training.initial_weights import check_start
    from perceptual_mae.training.memory import OPTIMIZER_MOMENTS, beyond_the_machine, estimate_memory

    training = config.training
    with torch.device("meta"):
        generator = build.build_generator(config.generator, config.data.image, config.training.seed)
        discriminator = build.build_discriminator(
            config.discriminator, config.data.image, config.training.seed, generator.encoder
        )
        networks = build.build_loss_networks(config.losses, config.data.image, discriminator, config.training.seed)
    path_length = build.build_penalty(config.penalties, "path_length", config.data.image, training.batch_size)
    peak, _ = build.generator_adam(config.optimizer, training.batch_size, path_length)
    start = check_start(config, out / "checkpoints") if branch is None else None
    other = check_discriminator_start(config, out / "checkpoints") if branch is None else None
    weights, with_positions = count_parameters(generator)
    lines = [to_yaml(config).rstrip(), ""]
    lines.append(f"generator: {weights:,} parameters, {with_positions:,} with fixed positions")
    total = weights
    if discriminator is not None:
        parameters = sum(parameter.numel() for parameter in discriminator.parameters())
        total += parameters
        lines.append(f"discriminator: {parameters:,} parameters")
    for name, network in (*networks.fixed.items(), *networks.copies.items()):
        lines.append(f"loss network {name}: {sum(each.numel() for each in network.parameters()):,} fixed parameters")
    if start is not None or branch is not None:
        lines.append(str(branch if start is None else start.origin))
    if other is not None:
        lines.append(str(other))
    if generator.fallback_heads:
        sizes = ", ".join(f"{height}x{width}" for height, width in generator.fallback_heads)
        lines.append(f"RGB heads in full form, because the patch does not divide there: {sizes}")
    share = training.batch_size // training.accumulation
    lines.append(
        f"effective batch: {training.batch_size} images = {training.accumulation} "
        f"{'micro-batch' if training.accumulation == 1 else 'micro-batches'} x {share}, shared by all processes"
    )
    if share < FEW_IMAGES and min(config.data.size) >= LARGE_SIDE:
        lines.append(
            f"steps of {share} images leave a GPU waiting for the host: an H100 took as long for 16 images of ViT-B as "
            "for 150 (docs/scaling.md); of ImageNet, imagenet_fast has larger ones"
        )
    lines.append(f"learning rate: {peak:g}")
    lines.append(describe_crops(config))
    lines += describe_images(config)
    kept = (1 + OPTIMIZER_MOMENTS) * total + (with_positions if training.ema_kimg else 0)
    kept += sum(parameter.numel() for parameter in networks.copies.parameters())
    lines.append(f"one checkpoint: {4 * kept / 1e6:,.1f} MB; {training.keep_last} are kept")
    estimate = estimate_memory(config, generator, discriminator)
    excess = beyond_the_machine(estimate)
    lines.append(f"memory: at least {estimate}" + (f", {excess}; here it is refused" if excess else ""))
    lines.append(f"would be written to {out}")
    return "\n".join(lines)


def describe_crops(config: "RunConfig") -> str:
    """Return at which scales images are cropped in training and when they are held out."""
    data = config.data
    height, width = data.size
    low, high = (f"{100 * share:g}" for share in data.crop_scale)
    train = "the centre" if data.crop == "center" else f"{low} to {high} % of an image's area"
    if (resize := data.shorter_side) is None:
        held_out = "as large as covers it"
    else:
        share = height * width / resize**2
        held_out = f"shorter side {resize}, then the centre ({100 * share:.0f} % of a square image)"
    return f"crops of {height}x{width}: in training {train}; of held-out images {held_out}"


def describe_images(config: "RunConfig") -> list[str]:
    """Return the number of steps, and what the image files' headers say; steps are unknown where there are no images.

    Raises UserError where a run would be refused for unreadable files.
    """
    from perceptual_mae.config import build
    from perceptual_mae.data.unreadable import check_images
    from perceptual_mae.progress import ProgressBar

    try:
        train = config.data.build("train")
    except UserError as mistake:
        return [f"steps: unknown, the data cannot be read ({mistake})"]
    plan = build.build_plan(config.training, len(train))
    timetable = build.build_timetable(config.schedule, config.training.epochs, plan.steps_per_epoch)
    steps = (
        f"steps: {timetable.total_steps:,} = {config.training.epochs} epochs x {plan.steps_per_epoch:,}, "
        f"warm-up {timetable.warmup_steps:,}; {len(train):,} training images"
    )
    datasets, missing = {"train": train}, list[str]()
    try:
        datasets[config.evaluation.split] = config.data.build(config.evaluation.split)
    except UserError as mistake:
        missing = [f"warning: no images to score ({mistake})"]
    with ProgressBar() as on_progress:
        check = check_images(datasets, on_progress, may_remove=True)
    if check.refusal is not None:
        raise UserError(check.refusal)
    return [steps, *check.lines, *(f"warning: {warning}" for warning in check.warnings), *missing]
