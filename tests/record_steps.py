"""Twenty seeded steps in float64 of recorded methods as numbers; run as a script, it writes the recording anew.

PYTHONPATH=. python tests/record_steps.py
"""

import gzip
import json
import math
import os
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from conftest import debug_config, random_batches
from perceptual_mae.data.loading import Batch
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.schedules import Timetable
from perceptual_mae.training.build import build_trainer
from perceptual_mae.training.trainer import Trainer
from processes import run_two_processes

HERE = Path(__file__).parent
RECORDING = HERE / "recordings" / "steps.json.gz"
STEPS, BATCH_SIZE, NUM_PROJECTIONS = 20, 8, 8

# All that is asked of the package, up to the next comment.

TIMETABLE = Timetable(3, STEPS + 1, 2)  # epochs 1 to 7: a snapshot (every=5) follows in 1 and 6


def build(arguments: list[str]) -> Trainer:
    """Return a trainer of debug size in float64 on this process."""
    config = debug_config(*arguments)
    torch.set_default_dtype(torch.float64)
    try:
        return build_trainer(config, make_accelerator(config, training=True), TIMETABLE)
    finally:
        torch.set_default_dtype(torch.float32)


def take_step(trainer: Trainer, batches: list[Batch], step: int) -> dict[str, Tensor]:
    """Take one step on this process's micro-batches and return its scalars."""
    return trainer.step(batches, TIMETABLE.progress(step))


def processes_of(trainer: Trainer) -> tuple[int, int]:
    """Return the index of this process and the number of all."""
    return trainer.accelerator.process_index, trainer.accelerator.num_processes


def networks_of(trainer: Trainer) -> dict[str, nn.Module]:
    """Return what a run's checkpoint keeps the weights of."""
    networks = {"generator": trainer.unwrapped_generator, "ema": trainer.ema.module, "copies": trainer.networks.copies}
    return networks | ({"discriminator": trainer.unwrapped_discriminator} if trainer.adversary else {})


def optimizers_of(trainer: Trainer) -> dict[str, Optimizer]:
    """Return the optimizers by the network they update."""
    optimizers = {"generator": trainer.optimizer}
    return optimizers | ({"discriminator": trainer.discriminator_optimizer} if trainer.adversary else {})


def adaptive_state_of(trainer: Trainer) -> dict[str, float]:
    """Return the numbers besides weights and moments that a run carries from step to step."""
    parts = {"balance": trainer.objective.balance}
    if trainer.adversary is not None:
        parts |= {"augmentation": trainer.adversary.augmentation, "path_length": trainer.adversary.path_length}
    states = {part: owner.state_dict() for part, owner in parts.items() if owner is not None}
    return {f"{part}/{name}": float(value) for part, state in states.items() for name, value in state.items()}


def is_adversarial(method: str) -> bool:
    return debug_config(method).discriminator is not None


# The rest knows of tensors only.

ADAPTIVE = ["augment.initial_p=0.3", "augment.kimg=0.5"]
"""The probability moves five times in the twenty steps."""

OPTIONS = {
    "stylegan2_ada_p": ADAPTIVE,
    "mae_stylegan2_ada_p": ADAPTIVE,
    "ls_gan": ["optimizer.clip_norm=0.5", "discriminator.norm=spectral"],
    "msg_gan": ["generator.drop_path=0.3"],
}
"""What keeps parts of the step alive that the method alone would not reach."""


@dataclass(frozen=True)
class Case:
    """One way to train a method, on a global batch that is the same in all of them."""

    method: str
    order: str
    accumulation: int
    processes: int

    def __str__(self) -> str:
        return f"{self.method}-{self.order}-accumulation_{self.accumulation}-processes_{self.processes}"


def cases(processes: int) -> Iterator[Case]:
    """List all cases of a number of processes; a method without discriminator has one order."""
    for method in METHODS:
        for order in ("lean", "sequential") if is_adversarial(method) else ("lean",):
            for accumulation in (1, 2):
                yield Case(method, order, accumulation, processes)


def record(case: Case) -> dict[str, list[float]]:
    """Train a case and return its numbers by name.

    A scalar is [steps that report it, first value, last value, sum over steps of value x (step + 1)]; a network or a
    moment is its norm and its projections; the rest is single numbers.
    """
    arguments = [case.method, f"training.order={case.order}", "training.ema_kimg=0.05", *OPTIONS.get(case.method, [])]
    trainer = build(arguments)
    index, processes = processes_of(trainer)
    assert processes == case.processes
    stride, first = processes * case.accumulation, index * case.accumulation
    seen: dict[str, list[float]] = {}
    for step in range(STEPS):
        own = random_batches(BATCH_SIZE, stride, seed=step)[first : first + case.accumulation]
        for name, value in take_step(trainer, own, step).items():
            if "/decoder_weights/" in name or "/last_layer/" in name:
                continue  # measured since the recording was made
            number = float(value)
            count, start, _, total = seen.get(f"scalar/{name}", (0, number, number, 0.0))
            seen[f"scalar/{name}"] = [count + 1, start, number, total + number * (step + 1)]
    for owner, network in networks_of(trainer).items():
        seen |= {f"weights/{owner}": project(list(network.state_dict().values()))}
    for owner, optimizer in optimizers_of(trainer).items():
        states = optimizer.state_dict()["state"].values()
        seen |= {f"{moment}/{owner}": project([state[moment] for state in states]) for moment in MOMENTS}
    return seen | {f"state/{name}": [value] for name, value in adaptive_state_of(trainer).items()}


MOMENTS = ("exp_avg", "exp_avg_sq")


def project(tensors: list[Tensor]) -> list[float]:
    """Return the norm of all tensors as one vector v and its products with cos(k (i + 1)), k = 1, 2, ..."""
    if not tensors:
        return []
    vector = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])
    places = torch.arange(1, len(vector) + 1, dtype=torch.float64)
    return [float(vector.norm()), *(float(vector @ (k * places).cos()) for k in range(1, NUM_PROJECTIONS + 1))]


def record_by_two(names: Collection[str]) -> dict[str, dict[str, list[float]]]:
    """Return the named cases of two processes as the first of them sees them, from one launch."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "two.json"
        run_two_processes(__file__, out, *names, timeout=900)
        recorded: dict[str, dict[str, list[float]]] = json.loads(out.read_text())
        return recorded


def load() -> dict[str, dict[str, list[float]]]:
    """Return the recording by the names of its cases."""
    with gzip.open(RECORDING, "rt") as file:
        recorded: dict[str, dict[str, list[float]]] = json.load(file)
        return recorded


METHODS = sorted({case.partition("-")[0] for case in load()})
"""Those of the recording; methods that were shipped later are not in it."""


def find_differences(found: dict[str, list[float]], recorded: dict[str, list[float]]) -> list[str]:
    """Say, a line each, what a case has no longer, has too much, or has another number for."""
    lines = [f"{name}: no longer there" for name in recorded.keys() - found.keys()]
    lines += [f"{name}: not in the recording" for name in found.keys() - recorded.keys()]
    for name in recorded.keys() & found.keys():
        before, now = recorded[name], found[name]
        rtol = 1e-6 if name in IN_FLOAT32 else 1e-9
        atol = 1e-12 * max((abs(value) for value in before if not math.isnan(value)), default=0.0)
        if len(before) != len(now) or not all(map(lambda a, b: is_close(a, b, rtol, atol), now, before)):
            lines.append(f"{name}: {now}, recorded as {before}")
    return sorted(lines)


IN_FLOAT32 = {f"scalar/discriminator/{name}" for name in ("real", "fake", "accuracy_real", "accuracy_fake")}
"""Scalars that a step reports in single precision whatever it trains in."""


def is_close(found: float, recorded: float, rtol: float, atol: float) -> bool:
    if math.isnan(recorded):
        return math.isnan(found)
    return abs(found - recorded) <= rtol * abs(recorded) + atol


def main() -> None:
    """Write the recording; as one of two processes, given a file and cases, only what they train together."""
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        file, *names = sys.argv[1:]
        recorded = {str(case): record(case) for case in cases(2) if str(case) in names}
        if int(os.environ["RANK"]) == 0:
            Path(file).write_text(json.dumps(recorded))
        torch.distributed.destroy_process_group()
        return
    recorded = {str(case): record(case) for case in cases(1)}
    recorded |= record_by_two([str(case) for case in cases(2)])
    RECORDING.parent.mkdir(exist_ok=True)
    RECORDING.write_bytes(gzip.compress(json.dumps(recorded).encode(), mtime=0))


if __name__ == "__main__":
    main()
