"""Accelerate set up for a run: processes, device and precision; for training its trackers, too."""

import warnings
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState

from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.errors import UserError


def make_accelerator(config: RunConfig, *, training: bool = False, path: Path | None = None) -> Accelerator:
    """Return Accelerate's view of processes, device and the run's precision.

    A run that is scored makes do with bf16 where fp16 has no GPU; `training` refuses that with UserError, and has the
    run's trackers write to `path`.
    """
    precision = config.training.precision
    if precision == "fp16" and not training and not torch.cuda.is_available():
        precision = "bf16"
    # Accelerate keeps the precision for the whole process; the next run of a notebook or a sweep may want another.
    AcceleratorState._reset_state()
    if not training:
        return Accelerator(mixed_precision=precision)
    # Buffers are constants here (positions, image statistics): there is nothing to send around at every forward.
    constant_buffers = DistributedDataParallelKwargs(broadcast_buffers=False)
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=list(config.tracking.trackers) or None,
        project_dir=path,
        kwargs_handlers=[constant_buffers],
    )
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("training.precision: fp16 needs a GPU; use bf16 or no")  # Accelerate would train in float32
    return accelerator
