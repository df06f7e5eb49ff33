"""`pmae configs`: what is shipped, what layers resolve to, and the schema of a file."""

import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from perceptual_mae.cli.options import check_layers, load_layers
from perceptual_mae.config.layers import Shipped, list_layers, list_methods, list_recipes, merge_layers
from perceptual_mae.report.published import FOOTNOTE, PAPER, RECONSTRUCTION, TRANSFER, Column

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UNBROKEN = 1000
"""Width of a console that breaks no line: what goes into a file or a pipe has one line a layer."""


TRANSFERS = ("detect", "segment")
"""Commands of dense transfer, which have recipes of their own."""
OF_THE_DISCRIMINATOR = ("discriminator", "snapshot")
"""Loss networks whose weights are those of the run's discriminator."""


def configs_command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="LAYER", help="Layers and overrides key=value to resolve; none: list them."),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a file, for editors.")] = False,
) -> None:
    """List the shipped recipes and methods, or print what layers resolve to and what each key means."""
    check_layers(arguments or [])
    if schema or arguments:
        from perceptual_mae.config.annotated import to_annotated_yaml
        from perceptual_mae.config.parsing import json_schema

        text = json.dumps(json_schema(), indent=2) + "\n" if schema else ""
        sys.stdout.write(text or to_annotated_yaml(load_layers(arguments or [])))
    else:
        from rich.console import Console

        console = Console(highlight=False)
        show_all(console if console.is_terminal else Console(highlight=False, width=UNBROKEN))


def show_all(console: "Console") -> None:
    """Print what recipes and methods are, and methods with the paper's numbers."""
    recipes, methods = list_recipes(), in_the_papers_order(list_methods())
    table = _table("recipes: data, model size, budget", "name", "title", *(["expects"] if console.is_terminal else []))
    for recipe in recipes:
        table.add_row(recipe.name, recipe.title, *([recipe.expectation] if console.is_terminal else []))
    console.print(table, "")
    for command in TRANSFERS:
        table = _table(f"recipes of pmae {command}", "name", "title", *(["expects"] if console.is_terminal else []))
        for recipe in list_layers("transfer", command):
            table.add_row(recipe.name, recipe.title, *([recipe.expectation] if console.is_terminal else []))
        if table.row_count:
            console.print(table, "")
    table = _table("methods", "name", "what it is", "needs")
    for method in methods:
        needs = ", ".join(foreign_weights(method))
        table.add_row(method.name, first_sentence(method.expectation), f"weights of {needs}" if needs else "")
    console.print(table, "")
    for table in _numbers(methods, console):
        console.print(table, "")
    console.print(FOOTNOTE)


def first_sentence(text: str) -> str:
    return re.split(r"\.\s+(?=[A-Z])", text, maxsplit=1)[0].rstrip(".") + "."


def foreign_weights(method: Shipped) -> list[str]:
    """Name the networks of a method that are not the discriminator's own, and so need a file of weights."""
    merged = merge_layers([method.name]).values
    owners = [*merged["losses"].values(), merged["discriminator"]]
    networks = [owner["network"] for owner in owners if isinstance(owner, dict) and "network" in owner]
    foreign = [network for network in networks if network["kind"] not in OF_THE_DISCRIMINATOR]
    needed = [network for network in foreign if network.get("weights") is None]
    return list(dict.fromkeys(network.get("name", network["kind"]) for network in needed))


def in_the_papers_order(methods: Sequence[Shipped]) -> list[Shipped]:
    """Return the methods of the paper in the order of its tables, then ours."""
    order = list(PAPER)
    return sorted(methods, key=lambda method: order.index(method.name) if method.name in PAPER else len(order))


def _numbers(methods: Sequence[Shipped], console: "Console") -> list["Table"]:
    """Return one table of all columns, or two where a line of all of them would not fit."""
    from rich.measure import Measurement

    whole = _with_published(methods, (*RECONSTRUCTION, *TRANSFER))
    wanted = Measurement.get(console, console.options.update(max_width=UNBROKEN), whole).maximum
    if wanted <= console.width:
        return [whole]
    return [_with_published(methods, columns) for columns in (RECONSTRUCTION, TRANSFER)]


def _with_published(methods: Sequence[Shipped], columns: Sequence[Column]) -> "Table":
    table = _table("methods: rows of the paper's tables, and its numbers", "name", "row")
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for method in methods:
        published = PAPER.get(method.name)
        row = method.title if published is not None else f"{method.title}: ours"
        table.add_row(method.name, row, *(column.show(published) for column in columns))
    return table


def _table(title: str, *headings: str) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=heading == "name", overflow="fold")
    return table
