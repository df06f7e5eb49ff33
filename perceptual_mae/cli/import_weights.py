"""`pmae import`: a run folder of weights that others trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from perceptual_mae.cli.output import print_lines
from perceptual_mae.errors import UserError

Number = TypeVar("Number", int, float)


def import_command(
    source: Annotated[Path, typer.Argument(metavar="FILE|FOLDER", help="Weights of another project, or an export.")],
    layers: Annotated[
        list[str] | None,
        typer.Argument(metavar="LAYER", help="Recipe of the images to use it on, then overrides, e.g. data.root=~/a."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the new run; none: runs/NAME.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads of the encoder.")] = None,
    decoder_heads: Annotated[int | None, typer.Option(min=1, help="Attention heads of the decoder.")] = None,
    norm_pix: Annotated[
        bool | None, typer.Option("--norm-pix/--no-norm-pix", help="Whether the decoder predicts normalised patches.")
    ] = None,
    layer_norm_eps: Annotated[float | None, typer.Option(help="Epsilon of LayerNorms, 1e-6 in MAE.")] = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="SIDE|HxW", help="Size of images that are no squares.")
    ] = None,
    mean: Annotated[str | None, typer.Option(metavar="M,M,M", help="Mean subtracted from images in [0, 1].")] = None,
    std: Annotated[
        str | None, typer.Option(metavar="S,S,S", help="Standard deviation that images are divided by.")
    ] = None,
) -> None:
    """Make a run of another project's weights, e.g. pmae import mae_pretrain_vit_base.pth imagenet --out runs/mae.

    Read are facebookresearch/mae, transformers (ViTMAE, ViT), timm, diffusers (AutoencoderRAE) and pmae export. Options
    say what a file does not.
    """
    if not source.exists():
        raise UserError(f"{source}: does not exist; give a file of weights, or a folder with one")
    size = _numbers(image_size, "--image-size", "x", int) if image_size else None
    from perceptual_mae.interop.importing import import_weights
    from perceptual_mae.interop.stated import Settings

    given = Settings(
        heads=heads,
        decoder_heads=decoder_heads,
        norm_pix=norm_pix,
        layer_norm_eps=layer_norm_eps,
        image_size=None if size is None else (size[0], size[-1]),
        mean=_numbers(mean, "--mean", ",", float) if mean else None,
        std=_numbers(std, "--std", ",", float) if std else None,
    )
    out = out or Path("runs") / source.absolute().name.partition(".")[0]
    imported = import_weights(source, out, layers or [], given)
    keeps_decoder = imported.pretrained.has_decoder and not imported.settings.norm_pix
    sharpen = f"pmae sharpen {out}{'' if keeps_decoder else ' --decoder fresh'} training.epochs=16"
    print_lines(*imported.summary(), f"written to {out}: pmae probe {out}, or {sharpen}")


def _numbers(text: str, option: str, separator: str, number: Callable[[str], Number]) -> tuple[Number, ...]:
    try:
        return tuple(number(part) for part in text.split(separator))
    except ValueError as mistake:
        raise UserError(f"{option} is {text!r}; give numbers separated by {separator!r}") from mistake
