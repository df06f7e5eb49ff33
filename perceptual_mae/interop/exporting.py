"""A run's network as other projects' files, each loaded again by its own library and compared with ours."""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from perceptual_mae.config.build import final_ratio
from perceptual_mae.errors import UserError
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.interop import graphs, hub_folders
from perceptual_mae.interop.exported import Export, Proof
from perceptual_mae.interop.model_card import CardOptions, model_card
from perceptual_mae.run.run import Run

EXTRA = "interop"
PROOF_IMAGES = 16


@dataclass(frozen=True)
class Form:
    """A form of export: how it is written and loaded again, what that needs, and what the form cannot hold.

    write(export): writes the weights and what belongs to them into `export.folder`. prove(export, images): the greatest
    difference between outputs of the written files and ours on images (B, C, H, W) in [0, 1]. needs: packages that are
    not installed with this one. decoder: whether it can hold one.
    """

    write: Callable[[Export], None]
    prove: Callable[[Export, Tensor], Proof]
    misfits: Callable[[Export], list[str]]
    tolerance: float
    needs: tuple[str, ...] = ()
    decoder: bool = False


FORMS: Mapping[str, Form] = {
    "timm": Form(hub_folders.write_timm, hub_folders.prove_timm, hub_folders.misfits_of_timm, 1e-9),
    "transformers": Form(
        hub_folders.write_transformers,
        hub_folders.prove_transformers,
        hub_folders.misfits_of_transformers,
        1e-9,
        needs=("transformers",),
        decoder=True,
    ),
    "onnx": Form(graphs.write_onnx, graphs.prove_onnx, graphs.no_misfits, 1e-3, ("onnx", "onnxscript", "onnxruntime")),
    "torchscript": Form(graphs.write_torchscript, graphs.prove_torchscript, graphs.no_misfits, 1e-4),
    "safetensors": Form(
        hub_folders.write_safetensors, hub_folders.prove_safetensors, graphs.no_misfits, 1e-9, decoder=True
    ),
}


def export_run(
    run: Run,
    form: str,
    out: Path,
    *,
    with_decoder: bool = False,
    ema: bool | None = None,
    card: CardOptions | None = None,
) -> Proof:
    """Write a run's encoder, with its decoder where asked for, to the folder `out`; return how well it was matched.

    Raises UserError, and then writes nothing: for options of the generator that the form cannot hold, for packages that
    are missing, and where the files, loaded again, do not give the outputs of the run.
    """
    chosen = FORMS[form]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is in use; choose an empty folder with --out")
    if with_decoder and not chosen.decoder:
        having = " or ".join(name for name, each in FORMS.items() if each.decoder)
        raise UserError(f"--with-decoder: {form} holds an encoder alone; leave it out, or export to {having}")
    _check_packages(form, chosen.needs)
    generator = run.generator(ema=ema)
    partial = out.with_name(f".{out.name}.partial")
    export = Export(generator, partial, with_decoder, final_ratio(run.config.masking), run.config.generator.options())
    if misfits := chosen.misfits(export):
        raise UserError(f"{run.path}: {form} cannot hold {', '.join(misfits)}; export to safetensors")
    shutil.rmtree(partial, ignore_errors=True)
    started = time.perf_counter()
    try:
        partial.mkdir(parents=True)
        chosen.write(export)
        with torch.no_grad():
            proof = chosen.prove(export, proof_images(generator))
        proof = proof.timed(time.perf_counter() - started)
        if not proof.difference <= chosen.tolerance * max(1.0, proof.largest):
            raise UserError(f"{out}: nothing was written, as what {form} loads is not what the run computes: {proof}")
        (partial / "README.md").write_text(
            model_card(run, form, export, proof, card or CardOptions()), encoding="utf-8"
        )
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return proof


def proof_images(generator: MaskedAutoencoder) -> Tensor:
    """Return the images (16, C, H, W) in [0, 1] that exports are compared on: always the same ones."""
    shape = (PROOF_IMAGES, generator.channels, *generator.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _check_packages(form: str, needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--to {form}: needs {', '.join(missing)}, not installed; install it: pip install 'perceptual-mae[{EXTRA}]'"
        )
