"""`pmae finetune`: all weights of a run's encoder learn from labels."""

from collections.abc import Sequence
from pathlib import Path

from perceptual_mae.cli.options import Scored
from perceptual_mae.cli.output import check_out, finish, numbers
from perceptual_mae.cli.progress import Watcher
from perceptual_mae.cli.representation_tables import finetune_table
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.finetuning.evaluate import check_timm, finetune_run
from perceptual_mae.evaluation.finetuning.recipes import RecipeName, read_recipe
from perceptual_mae.evaluation.open_run import open_run


def run(
    scored: Scored,
    *,
    recipe: RecipeName,
    settings: Sequence[str],
    fraction: float | None,
    from_scratch: bool,
    seeds: str,
    save: Path | None,
    out: Path | None,
) -> None:
    """Fine-tune a run, write the accuracies beside it (or to `out`) and print their table."""
    chosen = numbers(seeds, "--seeds", least=0)
    check_options(scored, fraction, from_scratch, save)
    check_out(out)
    check_timm()
    opened = open_run(**vars(scored))
    depth = len(opened.run.generator().encoder.blocks)
    resolved = read_recipe(recipe, depth, settings, from_scratch=from_scratch)
    with Watcher(quiet=not opened.is_main_process) as watch:
        report = finetune_run(
            opened.run,
            opened.data,
            opened.accelerator,
            resolved,
            seeds=chosen,
            fraction=fraction,
            from_scratch=from_scratch,
            ema=scored.ema,
            save=save,
            watch=watch,
        )
    name = f"finetune_{recipe}" + ("_scratch" if from_scratch else "")
    name += f"_fraction_{fraction:g}" if fraction is not None else ""
    report["recipe"] = {"name": recipe, **report["recipe"]}
    finish(opened, report, finetune_table, out or opened.default_path(name), then=next_step(scored, from_scratch, save))


def next_step(scored: Scored, from_scratch: bool, save: Path | None) -> str:
    """Say what to do with the result."""
    if save is not None:
        return f"the network lies in {save}; next: open_classifier of perceptual_mae.evaluation.finetuning.classifier"
    if from_scratch:
        return f"next: pmae finetune {scored.path} with the same options but --from-scratch, to compare"
    return f"next: pmae finetune {scored.path} with the same options and --from-scratch, the baseline"


def check_options(scored: Scored, fraction: float | None, from_scratch: bool, save: Path | None) -> None:
    """Refuse options that leave each other without effect, and a place the network cannot be written to."""
    if fraction is not None and not 0 < fraction <= 1:
        raise UserError(f"--fraction is {fraction:g}; give a share of the training images, such as 0.01 or 0.1")
    if fraction is not None and scored.limit is not None:
        raise UserError("--fraction and --limit both say how many training images there are; leave one out")
    if from_scratch and scored.ema is not None:
        raise UserError("--from-scratch takes none of the run's weights; leave out --ema and --no-ema")
    if save is not None and (save.is_file() or (save.is_dir() and any(save.iterdir()))):
        raise UserError(f"--save: {save} is in use; name a new folder")
