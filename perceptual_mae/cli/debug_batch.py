"""`pmae debug-batch`: the training batch of a step, drawn again."""

from pathlib import Path
from typing import Annotated

import typer

from perceptual_mae.cli.options import TrustCode, check_run
from perceptual_mae.cli.output import print_lines


def debug_batch_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder; nothing in it is changed but for debug/.")],
    step: Annotated[int, typer.Argument(metavar="STEP", help="Which step, counted from 0 as messages and alarms do.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; none: debug/step_STEP in the run.")] = None,
    trust_code: TrustCode = False,
) -> None:
    """Draw the training batch of a step again: its pictures with masks, files and pixels, e.g. after a loss was NaN."""
    check_run(run)
    from perceptual_mae.training.redraw import redraw_batch

    out = out or run / "debug" / f"step_{step:08d}"
    report = redraw_batch(run, step, out, trust_code=trust_code)
    for image in report["images"]:
        broken = f"; {image['non_finite_pixels']} pixels are not finite" if image["non_finite_pixels"] else ""
        name = f" {image['file']}" if image["file"] else ""
        lowest, highest = (f"{image[key]:.3f}" if image[key] is not None else "-" for key in ("lowest", "highest"))
        print_lines(f"image {image['index']}{name}: pass {image['pass']}, pixels {lowest} to {highest}{broken}")
    print_lines(f"step {step} of epoch {report['epoch']}: {out}/batch.png, batch.json")
