"""The encoder as a graph of its own, which runs without this package: ONNX and TorchScript."""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor

from perceptual_mae.errors import UserError
from perceptual_mae.interop.exported import Export, Proof, difference

OPSET = 20
ONNX, TORCHSCRIPT = "encoder.onnx", "encoder.pt"
BATCHES = (1, 3, 8)
"""Sizes of batches that an exported graph must take."""


def no_misfits(export: Export) -> list[str]:
    """Return nothing: every encoder has a graph."""
    return []


def write_onnx(export: Export) -> None:
    """Write encoder.onnx: `images` (batch, C, H, W) in [0, 1] to `tokens` (batch, 1+L, D), float32, in one file.

    The batch is symbolic. Height and width are those of the run: positions of other sizes would be wrong in silence.
    """
    import onnx

    encoder = copy.deepcopy(export.generator.encoder).float().eval().requires_grad_(False)
    path = export.folder / ONNX
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder,
            (_example(export),),
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["tokens"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
    graph = onnx.load(path).graph
    for value in (*graph.input, *graph.output):
        batch, *others = value.type.tensor_type.shape.dim
        if not batch.dim_param:  # exporters fix it without a word
            raise UserError(f"{path.name}: the graph takes batches of {batch.dim_value} alone; this is our mistake")
        if any(each.dim_param for each in others):  # it would be exported, and fail or be wrong when it is run
            raise UserError(f"{path.name}: the graph says it takes images of any size; export one file for each")


def prove_onnx(export: Export, images: Tensor) -> Proof:
    """Compare onnxruntime's tokens with ours in float32, in batches of several sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(export.folder / ONNX, providers=["CPUExecutionProvider"])

    def run(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])

    encoder = export.generator.encoder
    for size in BATCHES:
        run(images[:size])
    return difference(f"onnxruntime {onnxruntime.__version__}", run(images), encoder(images))


def write_torchscript(export: Export) -> None:
    """Write encoder.pt: images (B, C, H, W) in [0, 1] to tokens (B, 1+L, D), for any B."""
    encoder = copy.deepcopy(export.generator.encoder).float().eval().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks of shapes are not part of the graph; the form is deprecated
        traced: Any = torch.jit.trace(encoder, _example(export))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, export.folder / TORCHSCRIPT)


def prove_torchscript(export: Export, images: Tensor) -> Proof:
    """Compare the graph's tokens with ours in float32, which a trace is bound to, in batches of several sizes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded: Any = torch.jit.load(export.folder / TORCHSCRIPT)  # type: ignore[no-untyped-call]
    for size in BATCHES:
        loaded(images[:size])
    return difference(f"torch {torch.__version__} jit", loaded(images), export.generator.encoder(images))


def _example(export: Export) -> Tensor:
    """Return two images; a batch of one would be taken for a constant."""
    return torch.rand(2, export.generator.channels, *export.generator.image_size)
