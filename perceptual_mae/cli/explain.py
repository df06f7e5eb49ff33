"""`pmae explain`: where each value of a configuration comes from, or what one key is."""

from typing import Annotated

import typer

from perceptual_mae.cli.options import check_layers
from perceptual_mae.cli.output import print_lines
from perceptual_mae.config.layers import list_methods, list_recipes


def explain_command(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="LAYER...|KEY", help="Layers and overrides, or a key such as optimizer.lr."),
    ],
    stated: Annotated[bool, typer.Option("--stated", help="Only keys that layers and overrides state.")] = False,
) -> None:
    """Say of each key in force what set it, whose value it is, what the paper has and what it does."""
    names = {layer.name for layer in [*list_recipes(), *list_methods()]}
    asks_for_key = len(arguments) == 1 and arguments[0] not in names and not arguments[0].endswith((".yaml", ".yml"))
    if asks_for_key and "=" not in arguments[0]:
        from perceptual_mae.config.explanation import explain_key

        print_lines(*explain_key(arguments[0]))
        return
    check_layers(arguments)
    from perceptual_mae.config.explanation import DEFAULT, explain_layers

    shown = [each for each in explain_layers(arguments) if not stated or each.set_by != DEFAULT]
    print_lines(*(line for each in shown for line in each.lines()))
