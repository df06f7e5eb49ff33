"""The command line, `pmae`. Help, unknown layers and broken files come at once: torch is imported by what needs it."""

import os
import sys
import traceback
from collections.abc import Sequence

import typer

# A file of commands registers them as it is imported; pmae --help lists them in this order.
# isort: off
from perceptual_mae.cli import training_commands  # noqa: F401
from perceptual_mae.cli import sweep_commands  # noqa: F401
from perceptual_mae.cli import reconstruction_commands  # noqa: F401
from perceptual_mae.cli import scoring_commands  # noqa: F401
from perceptual_mae.cli import finetune_commands  # noqa: F401
from perceptual_mae.cli import comparing_commands  # noqa: F401
from perceptual_mae.cli import picture_commands  # noqa: F401
from perceptual_mae.cli import weight_commands  # noqa: F401

# isort: on
from perceptual_mae.cli.app import app
from perceptual_mae.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 when done, 2 for the user's mistakes, 130 when interrupted, 1 for our own."""
    sys.path.append(os.getcwd())  # a `kind` may name a class in a file of the user's own
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="pmae", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except UserError as mistake:
        return _tell(str(mistake))
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except RecursionError:
        return _tell("a YAML file refers to itself without end; remove the reference")
    except BrokenPipeError:  # the reader of our output left; nobody is to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as failure:
        return _tell(
            f"{failure.filename or 'a file'}: {failure.strerror or failure}; choose another place or make room"
        )
    except Exception as error:
        # Typer's own mistakes of usage; the class lives in click or inside typer, depending on the version.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _tell(f"{error.format_message()} (see pmae --help)") if error.format_message() else 2
        traceback.print_exc()
        return 1


def _tell(message: str) -> int:
    for line in message.splitlines():
        print(f"pmae: {line}", file=sys.stderr)
    return 2
