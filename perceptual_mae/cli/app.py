"""The typer application that commands register with."""

import typer

app = typer.Typer(
    help="Pre-train masked autoencoders with perceptual and adversarial losses.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
