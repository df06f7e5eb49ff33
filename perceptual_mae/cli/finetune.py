"""`pmae finetune`: all weights of a run's encoder learn from labels."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from perceptual_mae.cli.options import (
    Data,
    DataKeys,
    Ema,
    Folder,
    Fresh,
    Limit,
    Out,
    Scored,
    Split,
    TestLimit,
    TrustCode,
    check_run,
    read_numbers,
)
from perceptual_mae.cli.output import check_out, scoring, write_scores
from perceptual_mae.cli.representation_tables import finetune_table
from perceptual_mae.errors import UserError
from perceptual_mae.run.lock import is_unused


def finetune_command(
    folder: Folder,
    overrides: DataKeys = None,
    recipe: Annotated[
        Literal["mae", "paper", "small"],
        typer.Option(help="mae, paper: as published, by the encoder's depth; small: minutes, for small images."),
    ] = "mae",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A value of the recipe, e.g. layer_decay=0.75, drop_path=0.1, pool=class_token, mixup=0; repeatable.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="None: the recipe's. Its warm-up shortens too.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=2, max=1_000_000, help="Images of one step over all processes; none: the recipe's."),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of the head; none: the recipe's.")] = None,
    fraction: Annotated[
        float | None, typer.Option(help="Learn from this share of the training images, each class alike, e.g. 0.01.")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="The baseline: fresh weights, and no layer decay unless set.")
    ] = False,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Seeds; accuracies get mean and deviation.")] = "0",
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    test_limit: TestLimit = None,
    ema: Ema = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep the network there, for open_classifier in Python.")
    ] = None,
    trust_code: TrustCode = False,
    out: Out = None,
    fresh: Fresh = False,
) -> None:
    """Train a run's encoder end to end on labels, e.g. pmae finetune runs/a --recipe small --fraction 0.1.

    The same command goes on with a training that was stopped.
    """
    check_run(folder)
    scored = Scored(folder, overrides or [], data, split, limit, test_limit, ema, trust_code)
    options = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    named = [f"{key}={value}" for key, value in options.items() if value is not None]
    chosen = read_numbers(seeds, "--seeds", least=0)
    check_options(scored, fraction, from_scratch)
    if save is not None and save.is_file():
        raise UserError(f"--save: {save} is a file; name a new folder")
    check_out(out)
    from perceptual_mae.evaluation.finetuning.evaluate import finetune_run
    from perceptual_mae.evaluation.finetuning.recipes import read_recipe
    from perceptual_mae.evaluation.open_run import locked
    from perceptual_mae.evaluation.resumption import Checkpoints

    name = f"finetune_{recipe}" + ("_scratch" if from_scratch else "")
    name += f"_fraction_{fraction:g}" if fraction is not None else ""
    with scoring(scored) as (evaluation, on_progress), locked(save, evaluation.accelerator):
        written = out or evaluation.default_path(name)
        checkpoints = Checkpoints.of(written, fresh=fresh, log=on_progress.log)
        check_save(save, is_resumed=checkpoints.exist() and not fresh)
        depth = len(evaluation.run.generator().encoder.blocks)
        resolved = read_recipe(recipe, depth, [*(settings or []), *named], from_scratch=from_scratch)
        report = finetune_run(
            evaluation.run,
            evaluation.data,
            evaluation.accelerator,
            resolved,
            seeds=chosen,
            fraction=fraction,
            from_scratch=from_scratch,
            ema=scored.ema,
            save=save,
            checkpoints=checkpoints,
            on_progress=on_progress,
        )
    report["recipe"] = {"name": recipe, **report["recipe"]}
    write_scores(
        evaluation,
        report,
        finetune_table,
        written,
        next_step=next_step(scored, from_scratch, save),
        checkpoints=checkpoints,
    )


def next_step(scored: Scored, from_scratch: bool, save: Path | None) -> str:
    """Say what to do with the result."""
    if save is not None:
        return f"the network is in {save}; next: open_classifier of perceptual_mae.evaluation.finetuning.classifier"
    if from_scratch:
        return f"next: pmae finetune {scored.path} with the same options without --from-scratch, to compare"
    return f"next: pmae finetune {scored.path} with the same options and --from-scratch, the baseline"


def check_options(scored: Scored, fraction: float | None, from_scratch: bool) -> None:
    """Refuse options that leave each other without effect."""
    if fraction is not None and not 0 < fraction <= 1:
        raise UserError(f"--fraction is {fraction:g}; give a share of the training images, such as 0.01 or 0.1")
    if fraction is not None and scored.limit is not None:
        raise UserError("--fraction and --limit both say how many training images there are; leave one out")
    if from_scratch and scored.ema is not None:
        raise UserError("--from-scratch takes none of the run's weights; leave out --ema and --no-ema")


def check_save(save: Path | None, *, is_resumed: bool) -> None:
    """Refuse a place the network cannot be written to; a stopped command that goes on has begun to fill its own."""
    if save is not None and not (is_resumed or is_unused(save)):
        raise UserError(f"--save: {save} is in use; name a new folder")
