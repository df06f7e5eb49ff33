"""`pmae export`: a run's network as another project's files."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from perceptual_mae.cli.options import Ema, Folder, check_run
from perceptual_mae.cli.output import print_lines


def export_command(
    folder: Folder,
    to: Annotated[
        Literal["timm", "transformers", "onnx", "torchscript", "safetensors"],
        typer.Option("--to", help="Form of the files."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    with_decoder: Annotated[
        bool, typer.Option("--with-decoder", help="The decoder, too: transformers and safetensors.")
    ] = False,
    ema: Ema = None,
    license_name: Annotated[
        str | None, typer.Option("--license", help="Licence of the weights, for the model card, e.g. mit.")
    ] = None,
    base_model: Annotated[str | None, typer.Option(help="Name of the weights that the run was trained from.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Name of the training data, for the model card.")] = None,
) -> None:
    """Write a run's encoder for other libraries, e.g. pmae export runs/a --to timm --out exported.

    What was written is loaded again by its own library and compared with the run, on 16 images.
    """
    check_run(folder)
    from perceptual_mae.interop.exporting import export_run
    from perceptual_mae.interop.model_card import CardOptions
    from perceptual_mae.run.run import Run

    card = CardOptions(license_name, base_model, tuple(dataset or ()))
    proof = export_run(Run(folder), to, out, with_decoder=with_decoder, ema=ema, card=card)
    print_lines(str(proof), f"written to {out} in {proof.seconds:.1f} s; README.md says how to load it")
