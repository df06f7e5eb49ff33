"""`pmae bench`: what a training step costs, compared with that of other configurations."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perceptual_mae.cli.options import Layers, check_layers, load_layers, split_layers
from perceptual_mae.errors import UserError
from perceptual_mae.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Tree = dict[str, Any]

FILE_WIDTH = 120
"""Columns of the tables where there is no terminal."""


def bench_command(
    arguments: Layers,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER...", help="Another configuration; may be repeated. Ratios are to the first."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1_000_000, help="How often each kind of step is measured.")] = 10,
    warmup: Annotated[int, typer.Option(min=1, max=1_000_000, help="Rounds before, which do not count.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Images of a step; none: each configuration's.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of a CPU.")] = 1,
    loader: Annotated[
        bool, typer.Option("--loader", help="Also measure how fast images are read: one worker, and data.workers.")
    ] = False,
    step_rate: Annotated[
        float | None,
        typer.Option(
            "--images-per-second",
            metavar="RATE",
            min=0.001,
            max=1e9,
            help="Of training, where it is known: --loader says what it needs, and steps are not measured.",
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to a file.")] = None,
) -> None:
    """Measure what a training step costs, e.g. pmae bench cifar10 ls_gan_p --against cifar10 mse.

    Images are random, so no data are needed but for --loader. The configurations take turns, step by step, in one
    process.
    """
    if step_rate is not None and not loader:
        raise UserError("--images-per-second is what a loader has to keep up with; add --loader")
    configurations = [arguments, *(split_layers(joined) for joined in against or [])]
    for layers in configurations:
        check_layers(layers)
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise UserError(f"{file}: cannot be written; give --json a file in a folder that exists")
    run(
        configurations,
        rounds=rounds,
        warmup=warmup,
        threads=threads,
        batch_size=batch_size,
        file=file,
        loader=loader,
        step_rate=step_rate,
    )


def run(
    configurations: list[list[str]],
    *,
    rounds: int,
    warmup: int,
    threads: int,
    batch_size: int | None,
    file: Path | None,
    loader: bool = False,
    step_rate: float | None = None,
) -> None:
    """Measure configurations (layers and overrides) in turns; ratios are to the second, the first `--against`.

    loader: measure how fast images are read, too. step_rate: images a second of training; steps are not measured then.
    """
    from rich.console import Console

    from perceptual_mae.benchmark.loader import measure_loaders
    from perceptual_mae.benchmark.measure import measure
    from perceptual_mae.benchmark.report import report
    from perceptual_mae.progress import ProgressBar
    from perceptual_mae.training.memory import check_memory

    size = [f"training.batch_size={batch_size}"] if batch_size is not None else []
    configs = [(" ".join(layers), load_layers([*layers, *size])) for layers in configurations]
    for _, config in configs if step_rate is None else ():
        check_memory(config)
    results: Tree = {}
    with ProgressBar() as on_progress:
        loaders = measure_loaders(configs, rounds=rounds, on_progress=on_progress) if loader else []
        if step_rate is None:
            candidates, clock = measure(configs, rounds=rounds, warmup=warmup, threads=threads, on_progress=on_progress)
            results = report(candidates, clock, threads)
    if loader:
        trees = results.get("configurations", [])
        rates = [1e3 * tree["batch_size"] / tree["milliseconds"]["median"] for tree in trees] or [step_rate] * len(
            configs
        )
        results["loaders"] = [each.as_tree(rate) for each, rate in zip(loaders, rates, strict=True)]
    if file is not None:  # before the tables: whoever reads them may close the pipe
        write_atomically(file, json.dumps(results, indent=2) + "\n")
    console = Console()
    console = console if console.is_terminal else Console(width=FILE_WIDTH)
    if step_rate is None:
        print_tables(results, console)
    print_loaders(results.get("loaders", []), console)


def print_loaders(loaders: list[Tree], console: "Console") -> None:
    """Print how fast images are read, and what a training needs."""
    from rich.table import Table

    for number, tree in enumerate(loaders, start=1):
        images = f"{tree['num_images']:,} images of {tree['kind']}, batches of {tree['batch_size']}"
        what = f"{number}  {tree['name']}  ({images})"
        console.print(what, highlight=False, markup=False, soft_wrap=True)
        table = Table(title="images read a second", title_justify="left")
        for heading in ("workers", "images/s", "quartiles", "each"):
            table.add_column(heading, justify="right")
        for row in tree["workers"]:
            rate, workers = row["images_per_second"], row["workers"]
            spread = f"{rate['lower']:,.0f} {rate['upper']:,.0f}"
            table.add_row(str(workers), f"{rate['median']:,.0f}", spread, f"{rate['median'] / workers:,.0f}")
        console.print(table)
        needed, cores = tree["workers_needed"], tree["cores"]
        line = f"a training of {tree['step_images_per_second']:,.0f} images/s needs data.workers={needed}"
        if needed > cores:
            line += f", more than this machine's {cores} cores: it will wait for images"
        console.print(line, highlight=False)


def print_tables(results: Tree, console: "Console") -> None:
    """Print the results: configurations side by side, the parts of their steps, the kinds of step."""
    threads = (
        f"{results['threads']} thread{'s' if results['threads'] > 1 else ''}, " if results["device"] == "cpu" else ""
    )
    console.print(
        f"{results['device']}, {threads}{results['clock']}, {results['rounds']} rounds, torch {results['torch']}",
        highlight=False,
    )
    for number, tree in enumerate(results["configurations"], start=1):
        size = "x".join(map(str, tree["image_size"]))
        line = f"{number}  {tree['name']}  ({tree['batch_size']} images of {size}, precision {tree['precision']})"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for table in (mean_steps(results), parts(results), kinds_of_step(results)):
        console.print(table)
    held = {tree["augment_p"] for tree in results["configurations"]} - {None}
    if held:
        console.print(f"augmentation held at p = {', '.join(f'{p:g}' for p in sorted(held))}", highlight=False)
    if results["process_peak_memory"] is not None:
        console.print(f"this process held at most {megabytes(results['process_peak_memory'])} MB", highlight=False)


def mean_steps(results: Tree) -> "Table":
    """The mean step of each configuration; ratios are of the time an image takes."""
    from rich.table import Table

    trees = results["configurations"]
    table = Table(title="mean step", title_justify="left")
    table.add_column("")
    headings = ["ms", "GFLOP", "G passes", "D passes", "peak MB"]
    if len(trees) > 1:
        headings = [f"ratio to {results['reference'] + 1}", "quartiles", *headings]
    for heading in headings:
        table.add_column(heading, justify="right")
    for number, tree in enumerate(trees, start=1):
        ratio = tree["ratio"]
        compared = [f"{ratio['median']:.3f}", f"{ratio['lower']:.3f} {ratio['upper']:.3f}"] if len(trees) > 1 else []
        table.add_row(
            str(number),
            *compared,
            f"{tree['milliseconds']['median']:.1f}",
            f"{tree['flops'] / 1e9:.2f}",
            f"{tree['generator_passes']:.2f}",
            f"{tree['discriminator_passes']:.2f}",
            megabytes(tree["peak_memory"]),
        )
    return table


def parts(results: Tree) -> "Table":
    """Where the time of a mean step goes; each instant counts for the innermost part."""
    from rich.table import Table

    trees = results["configurations"]
    table = Table(title="milliseconds and share by part", title_justify="left")
    table.add_column("part", no_wrap=True)
    names = {name: None for tree in trees for name in tree["parts"]}
    for number in range(1, len(trees) + 1):
        table.add_column(str(number), justify="right")
    for name in names:
        cells = [tree["parts"].get(name) for tree in trees]
        table.add_row(
            name, *(f"{cell['milliseconds']:.1f}  {cell['share']:4.0%}" if cell is not None else "" for cell in cells)
        )
    return table


def kinds_of_step(results: Tree) -> "Table":
    """The kinds of step that the mean is of."""
    from rich.table import Table

    table = Table(title="kinds of step", title_justify="left")
    for heading in ("", "kind"):
        table.add_column(heading, no_wrap=True)
    for heading in ("weight", "ms", "GFLOP", "G passes", "D passes", "peak MB"):
        table.add_column(heading, justify="right")
    for number, tree in enumerate(results["configurations"], start=1):
        for step in tree["steps"]:
            table.add_row(
                str(number),
                step["kind"],
                f"{step['weight']:.1%}",
                f"{step['milliseconds']:.1f}",
                f"{step['flops'] / 1e9:.2f}",
                f"{step['generator_passes']:.2f}",
                f"{step['discriminator_passes']:.2f}",
                megabytes(step["peak_memory"]),
            )
        table.add_section()
    return table


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f}"
