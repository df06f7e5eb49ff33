"""The tables of `pmae bench`."""

from typing import Any

from rich.console import Console
from rich.table import Table

Tree = dict[str, Any]


def print_tables(told: Tree, console: Console) -> None:
    """Print what a bench reported: configurations side by side, the parts of their steps, the kinds of step."""
    threads = f"{told['threads']} thread{'s' if told['threads'] > 1 else ''}, " if told["device"] == "cpu" else ""
    console.print(
        f"{told['device']}, {threads}{told['clock']}, {told['rounds']} rounds, torch {told['torch']}", highlight=False
    )
    for number, tree in enumerate(told["configurations"], start=1):
        size = "x".join(map(str, tree["image_size"]))
        line = f"{number}  {tree['name']}  ({tree['batch_size']} images of {size}, precision {tree['precision']})"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for table in (configurations(told), parts(told), steps(told)):
        console.print(table)
    held = {tree["augment_p"] for tree in told["configurations"]} - {None}
    if held:
        console.print(f"augmentation held at p = {', '.join(f'{p:g}' for p in sorted(held))}", highlight=False)
    if told["process_peak_memory"] is not None:
        console.print(f"this process held at most {megabytes(told['process_peak_memory'])} MB", highlight=False)


def configurations(told: Tree) -> Table:
    """The mean step of each configuration; ratios are of the time an image takes."""
    trees = told["configurations"]
    table = Table(title="mean step", title_justify="left")
    table.add_column("")
    headings = ["ms", "GFLOP", "G passes", "D passes", "peak MB"]
    if len(trees) > 1:
        headings = [f"ratio to {told['reference'] + 1}", "quartiles", *headings]
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


def parts(told: Tree) -> Table:
    """Where the time of a mean step goes; each instant counts for the innermost part."""
    trees = told["configurations"]
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


def steps(told: Tree) -> Table:
    """The kinds of step that the mean is of."""
    table = Table(title="kinds of step", title_justify="left")
    for heading in ("", "kind"):
        table.add_column(heading, no_wrap=True)
    for heading in ("weight", "ms", "GFLOP", "G passes", "D passes", "peak MB"):
        table.add_column(heading, justify="right")
    for number, tree in enumerate(told["configurations"], start=1):
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
