"""A run opened for scoring: its weights, labelled images, and Accelerate's processes, device and precision."""

import ctypes
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.labelled_data import LabelledData, open_labelled, with_data
from perceptual_mae.evaluation.representation.features import fingerprint
from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.run.lock import FolderLock
from perceptual_mae.run.run import Run

Value = TypeVar("Value")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron",
}
"""What Accelerate's launcher sets for ways to spread weights over processes, and their names."""


@dataclass(frozen=True)
class EvaluationRun:
    """A run, the labelled images it is scored on, and which of its weights (None: averaged where there are any)."""

    run: Run
    data: LabelledData
    accelerator: Accelerator
    ema: bool | None

    @property
    def is_main_process(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def default_path(self, name: str) -> Path:
        """Return where the scores go: evaluation/ of the run, a name of their own for other data, split or limit."""
        return report_path(
            self.run, name, self.data.name, self.data.split, [self.data.limit, self.data.test_limit], self.ema
        )


def report_path(
    run: Run, name: str, data: str, split: str, limits: Sequence[int | None], ema: bool | None, *more: str
) -> Path:
    """Return evaluation/NAME.json of a run, where other data, split, limits or weights than usual add to the name."""
    parts = [name]
    if data != run.config.data.kind:
        parts.append(Path(data).stem)
    if split != run.config.evaluation.split:
        parts.append(split)
    parts += [str(limit) for limit in limits if limit is not None]
    parts += [] if ema is None else ["ema" if ema else "no_ema"]
    return run.path / "evaluation" / f"{'_'.join([*parts, *more])}.json"


def check_ema(run: Run, ema: bool | None) -> None:
    """Refuse averaged weights where the run has none."""
    if ema and not run.has_ema:
        raise UserError(f"{run.checkpoint}: holds no averaged weights; leave out --ema")


def open_run(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    data: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    ema: bool | None = None,
    trust_code: bool = False,
) -> EvaluationRun:
    """Open a run folder or checkpoint, and the labelled images to score it on (see `with_data` and `open_labelled`).

    trust_code: see `Run`. Raises UserError for what is not there.
    """
    run = Run(path, trust_code=trust_code)
    check_ema(run, ema)
    config = with_data(run.config, data, overrides)
    labelled = open_labelled(config, name=data, split=split, limit=limit, test_limit=test_limit)
    return EvaluationRun(run, labelled, make_accelerator(run.config), ema)


def open_generator(run: Run, accelerator: Accelerator, ema: bool | None) -> MaskedAutoencoder:
    """Return the run's generator, frozen, in evaluation mode and on the device."""
    return run.generator(ema=ema).requires_grad_(False).to(accelerator.device)


def uses_ema(run: Run, ema: bool | None) -> bool:
    """Tell whether averaged weights are scored: as asked, or where the run keeps them."""
    return run.has_ema if ema is None else ema


def describe(run: Run, encoder: Encoder, data: LabelledData, accelerator: Accelerator, *, ema: bool) -> dict[str, Any]:
    """Return the facts that make a score repeatable, for its JSON file."""
    height, width = data.transform.size
    return {
        "run": run.path.name,
        "step": run.step,
        "ema": ema,
        "encoder_sha256": fingerprint(encoder),
        "encoder_tensors": {"loaded": len(encoder.state_dict()), "missing": 0},  # loading is strict, or stops
        "precision": accelerator.mixed_precision,
        "data": data.name,
        "split": data.split,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "limit": data.limit,
        "test_limit": data.test_limit,
        "classes": data.num_classes,
        "transform": {"image_size": [height, width], "resize": data.transform.resize, "crop": "center"},
    }


def computes_in_bf16() -> bool:
    """Return whether the device computes in bfloat16; a processor without wide vector units emulates it, slowly."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.accelerator.is_available():
        return True
    has_kernels: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_kernels and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def precision_of(wanted: str) -> str:
    """Return no, bf16 or fp16 for what training.precision says."""
    if wanted != "auto":
        return wanted
    return "bf16" if computes_in_bf16() else "no"


def make_accelerator(config: RunConfig | None, *, training: bool = False, path: Path | None = None) -> Accelerator:
    """Return Accelerate's view of processes, device and the run's precision; without a run it is float32.

    A run that is scored makes do with bf16 where fp16 has no GPU; `training` refuses that with UserError, and has the
    run's trackers write to `path`.
    """
    if config is None or not training:
        return accelerator_of("no" if config is None else config.training.precision)
    # Buffers are constants here (positions, image statistics): there is nothing to send around at every forward.
    constant_buffers = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    accelerator = _accelerator(
        precision_of(config.training.precision),
        log_with=list(config.tracking.trackers) or None,
        project_dir=path,
        kwargs_handlers=[constant_buffers],
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("training.precision: fp16 needs a GPU; use bf16 or no")  # Accelerate would train in float32
    return accelerator


def accelerator_of(wanted: str) -> Accelerator:
    """Return Accelerate's view of processes and device for a `training.precision`; bf16 where fp16 has no GPU."""
    precision = precision_of(wanted)
    return _accelerator("bf16" if precision == "fp16" and not torch.cuda.is_available() else precision)


def _accelerator(precision: str, **options: Any) -> Accelerator:
    """Return an Accelerator; processes that a launcher started without a GPU join on the CPU."""
    for variable, name in SHARDING.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise UserError(
                f"{name}: is not supported, for generator and discriminator cannot be sharded together, and fit on one "
                f"GPU; use plain data parallelism (accelerate config: no {name}, or unset {variable})"
            )
    if not torch.accelerator.is_available():
        keep_freed_memory()
    allow_tf32(False)  # scores in float32 are that; a training that allows it does so in its steps
    # Accelerate keeps the precision for the whole process; the next run of a notebook or a sweep may want another.
    AcceleratorState._reset_state()
    # Without a GPU it must be said, or Accelerate takes each process for the only one.
    return Accelerator(mixed_precision=precision, cpu=not torch.accelerator.is_available(), **options)


def keep_freed_memory() -> None:
    """Let glibc keep what this process frees for what it allocates next, up to 2 GB; other C libraries do as they do.

    Each step allocates its gradients and activations anew. Memory that went back to the system comes page by page: on a
    CPU that took 7 to 10 % of an MSE step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # its upper limit: larger tensors still come from the system, and go back
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def allow_tf32(allowed: bool) -> None:
    """Let matrix products and convolutions of float32 round their factors to TensorFloat-32 on a GPU, or not."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def in_main_process(accelerator: Accelerator, action: Callable[[], Value]) -> Value:
    """Return to all processes what `action` returns in the main one; what it refuses, UserError, is refused in all."""
    result, mistake = None, None
    if accelerator.is_main_process:
        try:
            result = action()
        except UserError as refused:
            mistake = refused
    result, message = broadcast_object_list([result, None if mistake is None else str(mistake)])
    if message is not None:
        raise mistake or UserError(message)
    return cast(Value, result)


@contextmanager
def locked(folder: Path | None, accelerator: Accelerator) -> Iterator[None]:
    """Keep other processes that train out of a folder (None: there is none); UserError where one is in it already."""
    if folder is None:
        yield
        return
    lock = FolderLock(folder)
    in_main_process(accelerator, lock.acquire)
    try:
        yield
    finally:
        lock.release()
