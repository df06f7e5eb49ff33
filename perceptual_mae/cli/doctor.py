"""`pmae doctor`: what is installed and missing, what the machine can do, a dry step; to paste into a fault report."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from perceptual_mae.cli.options import check_layers, load_layers
from perceptual_mae.cli.output import print_lines

if TYPE_CHECKING:
    from perceptual_mae.config.parsing import RunConfig

MEGA = 1e6


def doctor_command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="LAYER", help="A configuration: its data are checked and a step of it is taken."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, max=600, help="How long matrix products are measured.")] = 2.0,
) -> None:
    """Say what this installation has and lacks, and with a configuration whether it would run and how long.

    The output is Markdown, to paste into a report of a fault; it has no paths but those that were typed.
    """
    check_layers(arguments or [])
    print_lines(*installation(), "", *machine(seconds), "", *weights())
    if arguments:
        config = load_layers(arguments)
        print_lines("", f"### {' '.join(arguments)}", "")
        for line in configuration(config, " ".join(arguments)):
            print_lines(line)


def installation() -> list[str]:
    """Return versions, and which commands lack packages."""
    from perceptual_mae.benchmark.machine import EXTRAS, missing_packages, versions

    lines = ["### Installation", "", *(f"- {name}: {version}" for name, version in versions().items())]
    for extra, missing in missing_packages().items():
        has = f"lacks {', '.join(missing)}: pip install 'perceptual-mae[{extra}]'" if missing else "complete"
        lines.append(f"- optional packages for {EXTRAS[extra]}: {has}")
    return lines


def machine(seconds: float) -> list[str]:
    """Return devices, memory, and the measured speed of matrix products."""
    from perceptual_mae.benchmark.machine import GIGA, TERA, devices, matrix_rates

    lines = ["### Machine", "", *(f"- {line}" for line in devices())]
    rates = matrix_rates(seconds)
    for name, rate in rates.items():
        shown = f"{rate / TERA:.0f} TFLOP/s" if rate > 10 * TERA else f"{rate / GIGA:.0f} GFLOP/s"
        lines.append(f"- matrix products in {name}: {shown}")
    if "bfloat16" not in rates:
        lines.append("- no bfloat16 in hardware: precision auto is float32 here")
    return lines


def weights() -> list[str]:
    """Return which files of other networks' weights are here, and what the others would unlock."""
    from perceptual_mae.pretrained_weights.registry import FOREIGN_WEIGHTS, find

    here = [name for name in FOREIGN_WEIGHTS if find(name) is not None]
    absent = {name: entry for name, entry in FOREIGN_WEIGHTS.items() if name not in here}
    lines = ["### Weights of other networks", "", f"- here: {', '.join(here) or 'none'}"]
    return [*lines, *(f"- missing: {name}, for {entry.unlocks}" for name, entry in absent.items())]


def configuration(config: "RunConfig", name: str) -> Iterator[str]:
    """Yield what a configuration's data are, then what a step of it costs here and whether its losses are finite."""
    from perceptual_mae.benchmark.measure import measure
    from perceptual_mae.benchmark.report import report
    from perceptual_mae.cli.pretrain import describe_images
    from perceptual_mae.config import build
    from perceptual_mae.errors import UserError
    from perceptual_mae.training.memory import check_memory

    for line in describe_images(config):
        yield f"- {line}"
    check_memory(config)
    import torch

    (candidate, *_), clock = measure([(name, config)], rounds=2, threads=torch.get_num_threads())
    measured = report([candidate], clock, torch.get_num_threads())
    tree = measured["configurations"][0]
    milliseconds = tree["milliseconds"]["median"]
    memory = tree["peak_memory"] or measured["process_peak_memory"] or 0
    yield (
        f"- a step of {candidate.batch_size} random images, precision {tree['precision']}: {milliseconds:.0f} ms, "
        f"{candidate.batch_size / milliseconds * 1e3:.0f} images/s, at most {memory / MEGA:,.0f} MB"
    )
    try:
        images = len(config.data.build("train"))
    except UserError:
        images = 0
    if images:
        plan = build.build_plan(config.training, images)
        hours = config.training.epochs * plan.steps_per_epoch * milliseconds / 3.6e6
        yield f"- the whole run: {hours:.1f} hours of steps like these, loading and scores not counted"
    wrong = list[str]()
    for kind in candidate.kinds:
        scalars = candidate.trainer.step(candidate.batches, kind.progress(0))
        wrong += [f"{key} (step {kind.label})" for key, value in scalars.items() if not _is_finite(value)]
    yield (
        f"- losses that are not finite: {', '.join(wrong)}"
        if wrong
        else "- all recorded losses and gradient norms are finite"
    )


def _is_finite(value: object) -> bool:
    import torch

    return bool(torch.as_tensor(value, dtype=torch.float64).isfinite().all())
