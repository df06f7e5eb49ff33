"""What the commands of dense transfer share: their options, and how they end when they are stopped."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from perceptual_mae.cli.output import leave_processes, print_lines
from perceptual_mae.files import write_json

if TYPE_CHECKING:
    from perceptual_mae.evaluation.resumption import Checkpoints
    from perceptual_mae.progress import ProgressBar
    from perceptual_mae.transfer.seeds import Files

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


class Processes(Protocol):
    """Accelerate's view of processes, as far as printing needs it."""

    @property
    def is_main_process(self) -> bool: ...


@dataclass(frozen=True)
class Overrides:
    """The arguments of a recipe with what the options say: later wins."""

    arguments: list[str]

    @classmethod
    def of(cls, arguments: list[str], root: Path | None, *, from_scratch: bool) -> "Overrides":
        """Lay --root over the arguments, and below the overrides no layer decay where weights are fresh."""
        names = [each for each in arguments if "=" not in each]
        scratch = ["optimizer.layer_decay=1.0"] if from_scratch else []
        rooted = [f"data.root={quoted(root)}"] if root is not None else []
        return cls([*names, *scratch, *(each for each in arguments if "=" in each), *rooted])


def quoted(path: Path) -> str:
    """Return a path as YAML's text, whatever is in it."""
    return "'" + str(path.expanduser().absolute()).replace("'", "''") + "'"


@contextmanager
def transferring(accelerator: Processes) -> Iterator["ProgressBar"]:
    """Show how far the training is; leave with 130 where it was stopped."""
    from perceptual_mae.progress import ProgressBar
    from perceptual_mae.run.signals import EXIT_CODE, Interrupted

    try:
        with ProgressBar(quiet=not accelerator.is_main_process) as on_progress:
            yield on_progress
    except Interrupted as stopped:
        if accelerator.is_main_process:
            print_lines(str(stopped), to_stderr=True)
        leave_processes()
        raise typer.Exit(EXIT_CODE) from None


def write_report(
    report: Mapping[str, Any],
    lines: Callable[[Mapping[str, Any]], list[str]],
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
    leave_processes()


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
