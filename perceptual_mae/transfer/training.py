"""Training of an encoder with a dense head: AdamW whose rate shrinks from the head down, resumed exactly.

Order, augmentation and random draws are functions of seed, step and image: there is no random state to keep.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.resumption import ResumableTrainings
from perceptual_mae.generator.encoder import NO_WEIGHT_DECAY
from perceptual_mae.progress import OnProgress, no_progress
from perceptual_mae.run.metrics_file import MetricsFile
from perceptual_mae.schedules import set_learning_rate
from perceptual_mae.seeding import stream_seed
from perceptual_mae.transfer.recipes import OptimizerSection, Schedule

TABLES = "relative_position"
"""In the names of tables of relative positions, which do not decay (BEiT, ViTDet)."""

TRANSFER_METRICS: Mapping[str, str] = {
    "step": "optimiser steps taken so far",
    "seed": "seed of the training",
    "images_seen": "images trained on so far: step x training.batch_size",
    "total": "the loss: the sum of all terms, a mean over the steps since the last record",
    "losses/TERM": "loss of a term, weighted",
    "gradient_norm": "norm of the gradient before clipping; with optimizer.clip_norm [0, inf)",
    "learning_rate": "learning rate of the head in the last step [0, inf)",
    "images_per_second": "training images a second, over all processes, since the last record (0, inf)",
    "evaluation/SCORE": "scores of held-out images; every training.score_every steps",
}
"""What stands in a transfer's .metrics.jsonl, one object a record."""


class Trainable(Protocol):
    """What is trained, an nn.Module with these two."""

    def loss(self, batch: Any, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the terms of the loss, scalars already weighted: their sum is minimised."""

    def draw(self, batch: Any, seed: int) -> dict[str, Tensor]:
        """Return a batch's random tensors, on the CPU: functions of (seed, pass, index) of each image."""


class Batches(Protocol):
    """Where micro-batches come from; see `SampleLoader`."""

    def from_step(self, step: int) -> Iterator[list[Any]]: ...

    def close(self) -> None: ...


class DenseNetwork(Trainable, Protocol):
    """A trunk of `depth` blocks with a head: its parameters are of layers, see `parameter_groups`."""

    depth: int
    drop_path: float

    def layer_of(self, name: str) -> int: ...


def groups_of(network: nn.Module, optimizer: OptimizerSection) -> list[dict[str, Any]]:
    """Return the parameter groups of a `DenseNetwork` by its layers."""
    layered = cast(DenseNetwork, network)
    return parameter_groups(
        network,
        layered.layer_of,
        layered.depth + 1,
        layer_decay=optimizer.layer_decay,
        weight_decay=optimizer.weight_decay,
    )


def parameter_groups(
    model: nn.Module, layer_of: Callable[[str], int], num_layers: int, *, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return AdamW's groups, a layer's two together: with decay, and without (norms, biases, tokens, positions).

    layer_of: layer of a parameter by its name, from 0 to `num_layers`. `lr_scale` of layer i is
    layer_decay ** (num_layers - i); `set_learning_rate` multiplies it. Frozen parameters are in none.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_spared = parameter.ndim <= 1 or name.rpartition(".")[2] in NO_WEIGHT_DECAY or TABLES in name
        layer = layer_of(name)
        group = groups.setdefault(
            (layer, is_spared),
            {
                "params": [],
                "layer": layer,
                "lr_scale": layer_decay ** (num_layers - layer),
                "weight_decay": 0.0 if is_spared else weight_decay,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


class _Objective(nn.Module):
    """A model's loss as a forward pass, which Accelerate wraps in autocast and DistributedDataParallel."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return cast(Trainable, self.model).loss(batch, draws)


def train(
    model: nn.Module,
    batches: Batches,
    groups: Sequence[dict[str, Any]],
    schedule: Schedule,
    accelerator: Accelerator,
    *,
    seed: int,
    batch_size: int,
    name: str = "training",
    betas: tuple[float, float] = (0.9, 0.999),
    clip_norm: float | None = None,
    log_every: int = 50,
    metrics: Path | None = None,
    trainings: ResumableTrainings | None = None,
    score: Callable[[], Mapping[str, float]] | None = None,
    score_every: int | None = None,
    on_progress: OnProgress = no_progress,
) -> list[dict[str, Any]]:
    """Train a `Trainable` in place; return the records of its losses, which `metrics` has a line of each of, too.

    A training that `trainings` has under this name goes on as if it had never stopped. score: called every
    `score_every` steps with the model in evaluation mode; nothing is chosen by it. Raises UserError where a loss is not
    finite, Interrupted where `trainings` was stopped.
    """
    trainings = trainings or ResumableTrainings(accelerator)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    optimizer = AdamW([dict(group) for group in groups], lr=0.0, betas=betas, fused=True)
    network, optimizer = accelerator.prepare(_Objective(model), optimizer)
    trained = {"model": model, "optimizer": optimizer}
    kept = trainings.begin(name)
    trainings.load(trained)
    step: int = kept.get("step", 0)
    records: list[dict[str, Any]] = kept.get("records", [])
    file = MetricsFile(metrics, step) if metrics is not None and accelerator.is_main_process else None
    meter = _Meter(accelerator, kept.get("sums"), kept.get("counted", 0))
    on_progress(name, step, schedule.steps)
    network.train()
    try:
        stream_of_steps = batches.from_step(step)
        while step < schedule.steps:
            set_learning_rate(optimizer, schedule.rate(step))
            micro_batches = next(stream_of_steps)
            for number, batch in enumerate(micro_batches):
                is_last = number == len(micro_batches) - 1
                draws = cast(Trainable, model).draw(batch, seed)
                moved = {key: value.to(accelerator.device, non_blocking=True) for key, value in draws.items()}
                torch.manual_seed(stream_seed("transfer step", seed, step, number, accelerator.process_index))
                with nullcontext() if is_last else accelerator.no_sync(network):
                    losses = network(batch.to(accelerator.device), moved)
                    accelerator.backward(sum(losses.values()) / len(micro_batches))
                meter.add(losses, len(micro_batches))
            if clip_norm is not None:
                meter.add({"gradient_norm": accelerator.clip_grad_norm_(model.parameters(), clip_norm)}, 1)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            meter.counted += 1
            if step % log_every == 0 or step == schedule.steps:
                means, seconds = meter.flush(name, step, trainings)
                record = {
                    "step": step,
                    "seed": seed,
                    "images_seen": step * batch_size,
                    **means,
                    "learning_rate": schedule.rate(step - 1),
                }
                records.append(record)
                if file is not None:
                    file.write(record | {"images_per_second": round(means_rate(seconds, batch_size), 3)})
            if score is not None and score_every and step % score_every == 0 and step < schedule.steps:
                model.eval()
                scores = score()
                network.train()
                if file is not None:
                    file.write({"step": step, "seed": seed, "evaluation": dict(scores)})
            on_progress(name, step, schedule.steps)
            trainings.after_step(step, schedule.steps, trained, lambda: {"records": records, **meter.kept()})
    finally:
        batches.close()
        accelerator.free_memory()
    model.eval()
    return records


def means_rate(seconds: tuple[float, int], batch_size: int) -> float:
    """Return images a second of (seconds, steps)."""
    return seconds[1] * batch_size / max(1e-9, seconds[0])


class _Meter:
    """Sums of the terms since the last record, on the device; `counted` steps of them."""

    def __init__(self, accelerator: Accelerator, sums: Sequence[Mapping[str, float]] | None, counted: int) -> None:
        self.accelerator, self.counted = accelerator, counted
        self._own_steps, self._started = 0 - counted, time.monotonic()
        kept: Mapping[str, float] = {}
        if sums:
            is_same = len(sums) == accelerator.num_processes
            kept = sums[accelerator.process_index] if is_same else _mean_of(sums)
        self._sums = {
            name: torch.tensor(value, dtype=torch.float32, device=accelerator.device) for name, value in kept.items()
        }

    def add(self, losses: Mapping[str, Tensor], parts: int) -> None:
        """Add the terms of one of the `parts` micro-batches of a step."""
        for name, value in losses.items():
            part = value.detach().float() / parts
            self._sums[name] = self._sums[name] + part if name in self._sums else part

    def flush(self, name: str, step: int, trainings: ResumableTrainings) -> tuple[dict[str, Any], tuple[float, int]]:
        """Return the means over steps and processes, with seconds and steps of this call; raise for what is no number.

        Waits for the device.
        """
        names = list(self._sums)
        stacked = torch.stack([self._sums[each] for each in names])
        means = (self.accelerator.reduce(stacked, reduction="mean") / self.counted).tolist()
        values = dict(zip(names, means, strict=True))
        if bad := [each for each, value in values.items() if not math.isfinite(value)]:
            trainings.discard()
            raise UserError(
                f"{name}: the loss {bad[0]} is not finite at step {step}; lower optimizer.lr or set optimizer.clip_norm"
            )
        norm = {"gradient_norm": values.pop("gradient_norm")} if "gradient_norm" in values else {}
        now = time.monotonic()
        seconds, steps = now - self._started, self.counted + self._own_steps
        self._sums, self.counted, self._own_steps, self._started = {}, 0, 0, now
        rounded = {each: round(value, 6) for each, value in values.items()}
        return {"total": round(math.fsum(values.values()), 6), "losses": rounded, **norm}, (seconds, steps)

    def kept(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the sums of each process. All processes call it."""
        names = list(self._sums)
        if not names:
            return {"sums": None, "counted": 0}
        rows = self.accelerator.gather(torch.stack([self._sums[each] for each in names])[None]).tolist()
        return {"sums": [dict(zip(names, row, strict=True)) for row in rows], "counted": self.counted}


def _mean_of(sums: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: math.fsum(part[name] for part in sums) / len(sums) for name in sums[0]}
