"""Features of any images, by a run's encoder, in a file: NumPy's .npz, or Parquet.

Shapes: N images, L patches, D width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from accelerate import Accelerator
from torch import Tensor

from perceptual_mae.config.build import build_evaluation_transform
from perceptual_mae.data.image_files import ImageFiles, check_any
from perceptual_mae.errors import UserError, did_you_mean
from perceptual_mae.evaluation.open_run import check_ema, open_generator, uses_ema
from perceptual_mae.evaluation.representation.features import (
    Extractor,
    block_tokens,
    extract_features,
    fingerprint,
    pool,
)
from perceptual_mae.files import replacing
from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.progress import OnProgress, no_progress
from perceptual_mae.run.folder import version_of
from perceptual_mae.run.run import Run

ARRAYS = {"class": "class_token", "mean": "mean_pool", "patches": "patches"}
"""What files call the tokens that are kept: the class token and the mean patch token (N, D), all patches (N, L, D)."""
DEFAULT = ("class", "mean")
SUFFIXES = (".npz", ".parquet")
NEEDS_PYARROW = "Parquet is written by pyarrow: pip install 'perceptual-mae[parquet]', or name a file that ends in .npz"


@dataclass(frozen=True)
class Embedding:
    """Names and features of images, those of `left_out` being unreadable; `metadata` says how they were made.

    arrays: class_token and mean_pool (N, D), patches (N, L, D), in float32, those that were asked for. Only the main
    process has any.
    """

    names: list[str]
    arrays: dict[str, Tensor]
    left_out: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


def tokens_of(text: str) -> tuple[str, ...]:
    """Return the words of a list such as class,mean, in the order of `ARRAYS`; UserError for others."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in ARRAYS:
            hint = did_you_mean(word, ARRAYS)
            raise UserError(f"--tokens: there is no {word!r}{hint}; choose from: {', '.join(ARRAYS)}")
    return tuple(name for name in ARRAYS if name in words)


def embed_images(
    run: Run,
    images: ImageFiles,
    accelerator: Accelerator,
    *,
    tokens: Sequence[str] = DEFAULT,
    layer: int | None = None,
    ema: bool | None = None,
    on_progress: OnProgress = no_progress,
) -> Embedding:
    """Return the encoder's tokens of whole images, prepared as the run prepares held-out ones.

    layer: number of the block they come after, each normalised as `pmae probe --layers` does (None: they come after the
    encoder's final norm). Unreadable images are logged and left out. Raises UserError where the run has no such block,
    where no image can be read or the features have no room, and for features that are not finite.
    """
    check_ema(run, ema)
    generator = open_generator(run, accelerator, ema)
    encoder, (rows, columns) = generator.encoder, generator.grid
    depth = len(encoder.blocks)
    if layer is not None and not 1 <= layer <= depth:
        raise UserError(f"--layer is {layer}; the encoder has blocks 1 to {depth}")
    numbers = sum(rows * columns if name == "patches" else 1 for name in tokens) * encoder.width
    _check_room(4 * numbers * len(images))
    transform = build_evaluation_transform(run.config.data)
    features = extract_features(
        _extractor(encoder, tokens, layer),
        images,
        transform,
        accelerator,
        workers=run.config.data.workers,
        needs_labels=False,
        name="images",
        on_progress=on_progress,
    )
    if not accelerator.is_main_process:
        return Embedding([], {})
    check_any(images, len(features.indices))
    names, kept = [_printable(name) for name in images.names], set(features.indices.tolist())
    left_out = [name for index, name in enumerate(names) if index not in kept]
    metadata = {
        "run": run.path.absolute().name,
        "step": run.step,
        "ema": uses_ema(run, ema),
        "encoder_sha256": fingerprint(encoder),
        "layer": layer,
        "transform": {"image_size": list(transform.size), "resize": transform.resize, "crop": "center"},
        "grid": [rows, columns],
        "unreadable": left_out,
        "versions": {name: version_of(name) for name in ("perceptual-mae", "torch", "torchvision")},
    }
    return Embedding([names[index] for index in sorted(kept)], features.named, left_out, metadata)


def write_embedding(embedding: Embedding, path: Path, *, half: bool = False) -> None:
    """Write an embedding, complete or not at all, to an .npz or .parquet file; `half` in float16.

    Both have `names` and the arrays under their names, and `metadata` in JSON: in an .npz an array of one text, in
    Parquet the key perceptual_mae of the schema's. UserError where float16 cannot hold a feature.
    """
    arrays: dict[str, Any] = {name: array.numpy() for name, array in embedding.arrays.items()}
    if half:
        arrays = {name: _to_half(array, name) for name, array in arrays.items()}
    with replacing(path) as partial:
        if path.suffix == ".parquet":
            _write_parquet(partial, embedding.names, arrays, embedding.metadata)
        else:
            text = np.array(json.dumps(embedding.metadata))
            with partial.open("wb") as file:
                np.savez(file, names=np.array(embedding.names), **arrays, metadata=text)


def check_pyarrow() -> None:
    """Raise UserError unless Parquet can be written."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(f"--out: {NEEDS_PYARROW}") from error


def _extractor(encoder: Encoder, tokens: Sequence[str], layer: int | None) -> Extractor:
    def extract(images: Tensor) -> dict[str, Tensor]:
        whole = encoder(images) if layer is None else block_tokens(encoder, images, (layer,))[layer]
        named = {**pool(whole), "patches": whole[:, 1:]}
        return {ARRAYS[name]: named[name] for name in tokens}

    return extract


def _check_room(size: int) -> None:
    free = psutil.virtual_memory().available
    if size > free:
        raise UserError(
            f"the features take {size / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} are free; embed fewer "
            "images at a time, or leave patches out of --tokens"
        )


def _to_half(array: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise UserError(f"--half: {name} has {np.abs(array).max():.3g}, which float16 does not hold; leave --half out")
    return half


def _printable(name: str) -> str:
    """Return a file's name with bytes that are no UTF-8 spelled out: no file of text takes them as they are."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _write_parquet(
    path: Path, names: Sequence[str], arrays: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, Any]
) -> None:
    """Write a row an image: its name, and a list of fixed size (of lists, for patches) an array."""
    import pyarrow as pa
    import pyarrow.parquet

    columns = {"names": pa.array(names, pa.string())}
    for name, array in arrays.items():
        column = pa.array(array.reshape(-1))
        for size in reversed(array.shape[1:]):
            column = pa.FixedSizeListArray.from_arrays(column, size)
        columns[name] = column
    table = pa.table(columns).replace_schema_metadata({"perceptual_mae": json.dumps(metadata)})
    pyarrow.parquet.write_table(table, path)
