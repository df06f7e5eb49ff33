"""`pmae configs`: what is shipped, what layers resolve to, and the schema of a file."""

import json
import sys

from rich.console import Console
from rich.table import Table

from perceptual_mae.layers import Shipped, list_methods, list_recipes


def run(arguments: list[str], schema: bool) -> None:
    """Print the schema, the resolved layers, or the list of all of them where none is named."""
    if schema or arguments:
        from perceptual_mae import config  # knows every table, and so imports torch

        text = json.dumps(config.json_schema(), indent=2) + "\n" if schema else ""
        sys.stdout.write(text or config.to_yaml(config.load_config(arguments)))
    else:
        _list("recipes: data, model size, budget", list_recipes())
        _list("methods: rows of the paper's tables", list_methods())


def _list(title: str, layers: list[Shipped]) -> None:
    console = Console()
    if not console.is_terminal:
        width = max(len(layer.name) for layer in layers)
        print(title)
        for layer in layers:
            print(f"  {layer.name:<{width}}  {layer.title}")
        return
    table = Table("name", "title", "expects", title=title, title_justify="left")
    for layer in layers:
        table.add_row(layer.name, layer.title, layer.expectation)
    console.print(table)
