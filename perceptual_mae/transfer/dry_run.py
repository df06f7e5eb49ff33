"""What a transfer would be, in words, before anything is allocated: parameters, steps, rates by layer, memory."""

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from perceptual_mae.evaluation.open_run import precision_of
from perceptual_mae.training.memory import OPTIMIZER_MOMENTS, MemoryEstimate, bytes_of, machine_memory, saved_bytes
from perceptual_mae.transfer.recipes import Schedule, TransferConfig
from perceptual_mae.transfer.training import Trainable, groups_of


def dry_run_lines(
    model: nn.Module, batch: Any, network: nn.Module, config: TransferConfig, *, images: int = 1
) -> list[str]:
    """Return parameters, steps, learning rates by layer and memory; model and batch, of `images`, are on meta.

    network: whose layers are trained. model: the network itself or a sketch of it, in training mode.
    """
    training, schedule = config.training, config.schedule.at(config.optimizer.lr)
    return [
        parameter_line(model),
        f"steps: {schedule.steps:,} of {training.batch_size} images, {config.schedule.kind} from {schedule.lr:g} to "
        f"{schedule.rate(schedule.steps - 1):.3g}, warm-up {config.schedule.warmup_steps:,}",
        *rate_lines(groups_of(network, config.optimizer), schedule),
        memory_line(model, batch, max(1, training.batch_size // training.accumulation) / images, training.precision),
    ]


def parameter_line(model: nn.Module) -> str:
    """Return the number of parameters, of each part and of those that are trained."""
    parts = {name: sum(each.numel() for each in part.parameters()) for name, part in model.named_children()}
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    named = ", ".join(f"{name} {count:,}" for name, count in parts.items() if count)
    return f"parameters: {sum(parts.values()):,} ({named}), {trained:,} of them trained"


def rate_lines(groups: Sequence[dict[str, Any]], schedule: Schedule) -> list[str]:
    """Return the peak learning rate of each layer and how many parameters it has."""
    by_layer: dict[int, tuple[float, int]] = {}
    for group in groups:
        count = sum(each.numel() for each in group["params"])
        by_layer[group["layer"]] = (group["lr_scale"], by_layer.get(group["layer"], (0.0, 0))[1] + count)
    lines = [
        f"  layer {layer:>2}: learning rate {schedule.lr * scale:.3g}, {count:,} parameters"
        for layer, (scale, count) in sorted(by_layer.items())
    ]
    return ["learning rates by layer (0 the embeddings, the last the head):", *lines]


def memory_line(model: nn.Module, batch: Any, times: float, precision: str) -> str:
    """Return the memory that a training step needs at least. times: how often a micro-batch has the images of batch."""
    held = sum(map(bytes_of, [*model.parameters(), *model.buffers()]))
    trained = sum(bytes_of(each) for each in model.parameters() if each.requires_grad)
    half = 1 if precision_of(precision) == "no" else 2  # autocast keeps most activations in 16 bits
    objective = cast(Trainable, model)
    activations = round(times * saved_bytes(lambda: objective.loss(batch, {}), [model]) / half)
    estimate = MemoryEstimate(held, trained, OPTIMIZER_MOMENTS * trained, 0, activations)
    memory, whose = machine_memory()
    fits = "" if estimate.total <= memory else f"; {whose} has {memory / 1e9:,.1f} GB: raise training.accumulation"
    return f"memory: at least {estimate}{fits}"
