"""The command line, `pmae`. Help, unknown layers and broken files come at once: torch is imported by what needs it."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from perceptual_mae.cli import (
    bench,
    compare,
    compare_images,
    configs,
    curves,
    data,
    debug_batch,
    demo,
    detect,
    doctor,
    embed,
    evaluate,
    explain,
    export,
    finetune,
    import_weights,
    knn,
    pretrain,
    probe,
    report,
    segment,
    sharpen,
    sweep,
    visualize,
    weights,
)
from perceptual_mae.cli.options import AgainstCommand
from perceptual_mae.cli.output import leave_processes, print_version
from perceptual_mae.errors import LostProcessError, UserError

app = typer.Typer(
    help="Pre-train masked autoencoders with perceptual and adversarial losses.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# pmae --help lists them in this order.
app.command("pretrain")(pretrain.pretrain_command)
app.command("sharpen")(sharpen.sharpen_command)
app.command("import")(import_weights.import_command)
app.command("export")(export.export_command)
app.command("configs")(configs.configs_command)
app.command("explain")(explain.explain_command)
app.command("bench", cls=AgainstCommand)(bench.bench_command)
app.command("sweep")(sweep.sweep_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("compare-images")(compare_images.compare_images_command)
app.command("probe")(probe.probe_command)
app.command("knn")(knn.knn_command)
app.command("finetune")(finetune.finetune_command)
app.command("detect")(detect.detect_command)
app.command("segment")(segment.segment_command)
app.command("embed")(embed.embed_command)
app.command("compare")(compare.compare_command)
app.command("curves")(curves.curves_command)
app.command("report")(report.report_command)
app.command("visualize")(visualize.visualize_command)
app.command("demo")(demo.demo_command)
app.command("doctor")(doctor.doctor_command)
app.command("debug-batch")(debug_batch.debug_batch_command)
app.add_typer(data.data, name="data")
app.add_typer(weights.weights, name="weights")


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version, and stop.")
    ] = False,
) -> None:
    """Pre-train masked autoencoders with perceptual and adversarial losses."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 when done, 2 for the user's mistakes, 130 when interrupted, 1 for what is not."""
    code = _run(arguments)
    if code != 1:  # after a fault the others may not answer any more
        leave_processes()
    return code


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="pmae", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except UserError as mistake:
        return _report_mistake(str(mistake))
    except LostProcessError as lost:
        _report_mistake(str(lost))
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except RecursionError:
        return _report_mistake("a YAML file refers to itself without end; remove the reference")
    except BrokenPipeError:  # the reader of our output left, so nothing more is printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as failure:
        return _report_mistake(
            f"{failure.filename or 'a file'}: {failure.strerror or failure}; choose another place or make room"
        )
    except Exception as error:
        # Typer's own mistakes of usage; the class lives in click or inside typer, depending on the version.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _report_mistake(f"{error.format_message()} (see pmae --help)") if error.format_message() else 2
        from perceptual_mae.training.peers import is_broken_connection

        if is_broken_connection(error):  # of a command of several processes that is no training
            _report_mistake("another process of the command was lost; give the same command again")
        else:
            traceback.print_exc()
        return 1


def _report_mistake(message: str) -> int:
    for line in message.splitlines():
        print(f"pmae: {line}", file=sys.stderr)
    return 2
