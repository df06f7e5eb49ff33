"""The commands of dense transfer: their options, what they do in which order, and what they print."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from perceptual_mae.cli.options import Ema, Fresh, TrustCode, read_numbers
from perceptual_mae.cli.output import percent, print_lines, showing_progress
from perceptual_mae.files import write_json

if TYPE_CHECKING:
    from perceptual_mae.evaluation.resumption import Checkpoints
    from perceptual_mae.transfer.seeds import Files
    from perceptual_mae.transfer.task import Task

    AnyTask = type[Task[Any, Any, Any, Any]]

Encoder = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder or a checkpoint in it, or timm:NAME[:FILE], a yardstick.")
]
Recipe = Annotated[
    list[str],
    typer.Argument(metavar="RECIPE", help="A shipped recipe or a YAML file, then overrides key=value; later wins."),
]
Root = Annotated[Path | None, typer.Option(help="Folder of the data set: data.root.")]
OutFolder = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="For scores and pictures; none: evaluation/ of the run.")
]
Seeds = Annotated[str, typer.Option(metavar="N,N,...", help="Seeds; scores get mean and deviation.")]
FromScratch = Annotated[
    bool, typer.Option("--from-scratch", help="The baseline: fresh weights, and no layer decay unless set.")
]
Freeze = Annotated[
    bool, typer.Option("--freeze", help="Train the head alone; with --from-scratch on a random encoder.")
]
Save = Annotated[bool, typer.Option("--save", help="Keep each seed's network, as safetensors.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print parameters, steps, learning rates by layer and memory, and stop.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use that many training images, the first ones.")]
TestLimit = Annotated[int | None, typer.Option(min=1, help="Score that many images, the first ones.")]

Lines = Callable[[Mapping[str, Any]], list[str]]
"""Returns the lines of a report's tables."""


class Processes(Protocol):
    """Accelerate's view of processes, as far as printing needs it."""

    @property
    def is_main_process(self) -> bool: ...


def with_options(arguments: list[str], root: Path | None, *, from_scratch: bool) -> list[str]:
    """Return a recipe's arguments with --root after them, and no layer decay before them where weights are fresh."""
    names = [each for each in arguments if "=" not in each]
    scratch = ["optimizer.layer_decay=1.0"] if from_scratch else []
    rooted = [f"data.root={quoted(root)}"] if root is not None else []
    return [*names, *scratch, *(each for each in arguments if "=" in each), *rooted]


def quoted(path: Path) -> str:
    """Return a path as YAML's text, whatever is in it."""
    return "'" + str(path.expanduser().absolute()).replace("'", "''") + "'"


def transfer_command(load: Callable[[], "AnyTask"], lines: Lines, description: str) -> Callable[..., None]:
    """Return the command that trains and scores a task; `load` imports the task's class, which takes seconds.

    lines: of the tables that are printed. description: the help.
    """

    def command(
        encoder: Encoder,
        recipe: Recipe,
        root: Root = None,
        out: OutFolder = None,
        seeds: Seeds = "0",
        from_scratch: FromScratch = False,
        freeze: Freeze = False,
        limit: Limit = None,
        test_limit: TestLimit = None,
        ema: Ema = None,
        save: Save = False,
        trust_code: TrustCode = False,
        fresh: Fresh = False,
        dry_run: DryRun = False,
    ) -> None:
        numbers = read_numbers(seeds, "--seeds", least=0)
        from perceptual_mae.config.annotated import to_annotated_yaml
        from perceptual_mae.evaluation.open_run import accelerator_of
        from perceptual_mae.evaluation.resumption import Checkpoints
        from perceptual_mae.transfer.encoders import open_source
        from perceptual_mae.transfer.recipes import read_recipe
        from perceptual_mae.transfer.seeds import Files
        from perceptual_mae.transfer.task import run_task

        task = load()
        config, name = read_recipe(
            task.command, task.config_type, with_options(recipe, root, from_scratch=from_scratch)
        )
        source = open_source(encoder, from_scratch=from_scratch, ema=ema, trust_code=trust_code)
        if dry_run:
            print_lines(to_annotated_yaml(config).rstrip("\n"), "", *task.dry_run(source, config, frozen=freeze))
            return
        limits = (limit, test_limit)
        files = Files.of(source, task.command, name, out, frozen=freeze, limits=limits)
        opened = task.open(source, config, limits, frozen=freeze)
        accelerator = accelerator_of(opened.config.training.precision)
        with showing_progress(is_main_process=accelerator.is_main_process) as on_progress:
            checkpoints = Checkpoints.of(files.result, fresh=fresh, log=on_progress.log)
            report = run_task(
                opened,
                accelerator,
                files,
                seeds=numbers,
                save_weights=save,
                checkpoints=checkpoints,
                on_progress=on_progress,
            )
        write_report({**report, "recipe": {"name": name, **report["recipe"]}}, lines, files, checkpoints, accelerator)

    command.__doc__ = description
    return command


def write_report(
    report: Mapping[str, Any],
    lines: Lines,
    files: "Files",
    checkpoints: "Checkpoints",
    accelerator: Processes,
) -> None:
    """Write the scores, drop what a stopped command would need, and print; the main process alone does."""
    if accelerator.is_main_process:
        files.folder.mkdir(parents=True, exist_ok=True)
        write_json(files.result, report)
        checkpoints.discard()
        written = f"written to {files.folder}: {files.result.name}, {files.pictures.name} (best, worst and first ones)"
        print_lines(headline(report), "", *lines(report), "", written)


def headline(report: Mapping[str, Any]) -> str:
    """Say what was transferred: whose encoder, its tensors, which of its maps, on what."""
    taps = report["taps"]
    origin = {"skips": "those of its skips", "standard": "the standard ones", "chosen": "as chosen"}
    which = "the last stages" if taps["source"] == "stages" else f"blocks {taps['blocks']}, {origin[taps['source']]}"
    digest = (report["encoder_sha256"] or "")[:12]
    loaded = report["encoder_tensors"]["loaded"]
    weights = f"encoder {digest}, {loaded} tensors loaded, none missing" if loaded else "random weights"
    averaged = " (averaged weights)" if report["ema"] else ""
    frozen = ", frozen" if report["frozen"] else ""
    return (
        f"{report['run']}, step {report['step']}{averaged}: {weights}{frozen}; maps of {which}; {report['data']}, "
        f"{report['train_images']} train and {report['test_images']} {report['split']} images"
    )


def over_seeds(score: Mapping[str, Any]) -> str:
    """Return the mean of a score over seeds in %, with its deviation."""
    return percent(score["mean"], score["deviation"])
