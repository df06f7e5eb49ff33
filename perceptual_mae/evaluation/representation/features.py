"""Frozen features of a labelled set: one pass over whole images, nothing hidden.

An extractor maps images (B, C, H, W) in [0, 1] to named features (B, D). Shapes: B images, L patches, D width.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from perceptual_mae.config import build
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.loading import evaluation_batches
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.finite import check_finite
from perceptual_mae.evaluation.labelled_data import LabelledData
from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.progress import OnProgress, no_progress

if TYPE_CHECKING:
    from perceptual_mae.evaluation.representation.feature_parts import FeatureParts

Extractor = Callable[[Tensor], dict[str, Tensor]]
POOLINGS = ("class", "mean")
PIXEL_SIDE = 32
BATCH_SIZE = 128


@dataclass(frozen=True)
class Features:
    """Float32 features (N, ...) by name, int64 labels and places in the data set (N,), in its order."""

    named: dict[str, Tensor]
    labels: Tensor
    indices: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


def encoder_features(encoder: Encoder) -> Extractor:
    """Return the extractor of the class token and the mean of the patch tokens, after the encoder's final norm."""

    def extract(images: Tensor) -> dict[str, Tensor]:
        return pool(encoder(images))

    return extract


def layer_features(encoder: Encoder) -> Extractor:
    """Return the extractor of both poolings after every block, named "class/1" to "mean/K".

    Each token is normalised as by the final norm without its affine part, which a probe's BatchNorm undoes: the last
    block's features score as those of `encoder_features` do, up to rounding.
    """
    blocks = range(1, len(encoder.blocks) + 1)

    def extract(images: Tensor) -> dict[str, Tensor]:
        pooled = {block: pool(tokens) for block, tokens in block_tokens(encoder, images, blocks).items()}
        return {f"{name}/{block}": pooled[block][name] for name in POOLINGS for block in blocks}

    return extract


def block_tokens(encoder: Encoder, images: Tensor, blocks: Collection[int]) -> dict[int, Tensor]:
    """Return tokens (B, 1+L, D) after the numbered blocks, float32, normalised as by a final norm without affine part.

    images: (B, C, H, W) in [0, 1]; blocks count from 1.
    """
    _, tapped = encoder.encode(images, taps=blocks)
    return {block: F.layer_norm(tapped[block].float(), (encoder.width,), eps=encoder.norm.eps) for block in blocks}


def pixel_features(images: Tensor) -> dict[str, Tensor]:
    """Return the pixels themselves {"pixels": (B, C*h*w)}, averaged down to a side of at most 32."""
    size = tuple(min(PIXEL_SIDE, side) for side in images.shape[2:])
    return {"pixels": F.interpolate(images.float(), size=size, mode="area").flatten(1)}


def pool(tokens: Tensor) -> dict[str, Tensor]:
    """Return the class token and the mean patch token (B, D), float32, of tokens (B, 1+L, D), class token first."""
    tokens = tokens.float()
    return {"class": tokens[:, 0], "mean": tokens[:, 1:].mean(1)}


def fingerprint(encoder: Encoder) -> str:
    """Return the SHA-256 of an encoder's exported tensors: names, shapes and values, whatever file they came from."""
    return fingerprint_of(encoder.export_state_dict())


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors: names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def extract_features(
    extractor: Extractor,
    dataset: ImageDataset,
    transform: Callable[[Tensor], Tensor],
    accelerator: Accelerator,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    needs_labels: bool = True,
    name: str = "features",
    on_progress: OnProgress = no_progress,
    parts: "FeatureParts | None" = None,
) -> Features:
    """Return the features of a whole data set, on the CPU; memory grows with the features alone, which are held once.

    Process r of P reads every P-th image from the r-th on; each image counts once and the order is the data set's. Only
    the main process keeps the result: on the others it is empty. Unreadable images are logged and left out. Batches
    that `parts` has are not read again, those that it has not are handed to it.
    Raises UserError where an image carries no label, unless they are not needed, and for features that are not finite.
    """
    processes, rank = accelerator.num_processes, accelerator.process_index
    share = range(rank, len(dataset), processes)
    chunks, first = parts.load() if parts is not None else ([], 0)
    for batch in evaluation_batches(dataset, transform, batch_size=batch_size, workers=workers, indices=share[first:]):
        if needs_labels and bool((batch.labels < 0).any()):
            raise UserError("some images of the data set carry no label; name a labelled set with --data")
        with accelerator.autocast():
            extracted = extractor(batch.to(accelerator.device).images)
        # Copies: a class token that is a view would keep the tokens of all patches alive.
        on_host = {key: check_finite(value.float().cpu().clone(), "features") for key, value in extracted.items()}
        chunks.append((batch.indices, batch.labels, on_host))
        if parts is not None:
            read = share.index(int(batch.indices[-1])) + 1  # to the last readable image of the batch
            parts.add(chunks[-1], min(len(share), -(-read // batch_size) * batch_size))
        on_progress(name, int(batch.indices[-1]) + 1, len(dataset))
    if processes > 1:
        chunks = _to_main_process(chunks, accelerator)
    if not chunks:
        return Features({}, torch.empty(0, dtype=torch.int64))
    indices, order = torch.cat([places for places, _, _ in chunks]).sort()
    labels = torch.cat([labels for _, labels, _ in chunks])[order]
    rows = torch.split(order.argsort(), [len(places) for places, _, _ in chunks])
    named = {}
    for key in tuple(chunks[0][2]):
        whole = torch.empty(len(indices), *chunks[0][2][key].shape[1:])
        for places, (_, _, extracted) in zip(rows, chunks, strict=True):
            whole[places] = extracted.pop(key)  # which frees it: memory holds the whole and what is left of the parts
        named[key] = whole
    return Features(named, labels, indices)


Chunk = tuple[Tensor, Tensor, dict[str, Tensor]]


def _to_main_process(chunks: list[Chunk], accelerator: Accelerator) -> list[Chunk]:
    """Hand all chunks to the main process, one a process at a time: gathering copies what it gathers."""
    rounds = max(gather_object([len(chunks)]))
    gathered: list[Chunk] = []
    for turn in range(rounds):
        parts = gather_object(chunks[turn : turn + 1])
        if accelerator.is_main_process:
            gathered += parts
    return gathered


def build_extractors(
    generator: MaskedAutoencoder, config: RunConfig, accelerator: Accelerator, *, baselines: bool
) -> dict[str, Extractor]:
    """Return what is scored by name: the run's encoder, and with `baselines` the same before training, and pixels."""
    extractors: dict[str, Extractor] = {"encoder": encoder_features(generator.encoder)}
    if baselines:
        untrained = (
            build.build_generator(config.generator, config.data.image, config.training.seed)
            .eval()
            .requires_grad_(False)
            .to(accelerator.device)
        )
        extractors |= {"random encoder": encoder_features(untrained.encoder), "raw pixels": pixel_features}
    return extractors


def both_splits(
    extractor: Extractor,
    data: LabelledData,
    accelerator: Accelerator,
    name: str,
    on_progress: OnProgress = no_progress,
    parts_of: "Callable[[str], FeatureParts] | None" = None,
) -> tuple[Features, Features]:
    """Return the features of the training and of the test images, without augmentation.

    parts_of: what is kept of a pass of this name.
    """
    train, test = (
        extract(extractor, dataset, data, accelerator, task, on_progress, parts_of(task) if parts_of else None)
        for dataset, task in ((data.train, f"{name}, train"), (data.test, f"{name}, {data.split}"))
    )
    return train, test


def extract(
    extractor: Extractor,
    dataset: ImageDataset,
    data: LabelledData,
    accelerator: Accelerator,
    name: str,
    on_progress: OnProgress,
    parts: "FeatureParts | None" = None,
) -> Features:
    """Return the features of one part of labelled data, prepared as the run prepares held-out images."""
    return extract_features(
        extractor,
        dataset,
        data.transform,
        accelerator,
        batch_size=BATCH_SIZE,
        workers=data.workers,
        name=name,
        on_progress=on_progress,
        parts=parts,
    )
