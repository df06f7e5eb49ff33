"""Does a GPU compute what a CPU computes? One step of every method from the same weights, bfloat16, exact resume."""

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpu.form import FOUR, Form, config_of, methods, words_of
from perceptual_mae.benchmark.measure import random_batches
from perceptual_mae.config.parsing import RunConfig, load_config
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.run import checkpoint
from perceptual_mae.run.signals import Interrupted
from perceptual_mae.schedules import Timetable, TrainingProgress
from perceptual_mae.seeding import stream
from perceptual_mae.training.build import build_trainer
from perceptual_mae.training.loop import pretrain
from perceptual_mae.training.trainer import Trainer

SCRIPT = Path(__file__).parents[1] / "gpu_check.py"
LOSSES, COSINE = 1e-4, 0.9999
"""How far losses may differ, of themselves or of 1, and how nearly parallel gradients must be."""
FIRST_EVEN = TrainingProgress(2, 0, 0.5)
"""A step in which every term, penalty and balance is due."""
SIGTERM_AT = 5
GPU_MARK, TEST_SECONDS = "@pytest.mark.gpu", 150


@dataclass(frozen=True)
class Comparison:
    """A method's step on the GPU against that on the CPU, in float32, and whether it is finite in bfloat16."""

    method: str
    worst_loss: str
    loss_difference: float
    cosines: dict[str, float]
    bf16_is_finite: bool

    @property
    def agrees(self) -> bool:
        return self.loss_difference <= LOSSES and min(self.cosines.values()) >= COSINE and self.bf16_is_finite


def check(form: Form) -> dict[str, Any]:
    """Return the comparison of every method, and of resumed with unbroken runs."""
    write_reference_apart(form)
    compared = []
    for method in methods():
        with float32_alone():
            ours = first_step(step_config(method, form, "no"))
        reference = load_file(reference_file(form.out, method))
        half = first_step(step_config(method, form, "bf16"))
        compared.append(compare(method, ours, reference, all(bool(value.isfinite().all()) for value in half.values())))
        print(f"  {method}: loss {compared[-1].loss_difference:.1e}, cosines {compared[-1].cosines}", flush=True)
    return {
        "device": device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "methods": [{**asdict(each), "agrees": each.agrees} for each in compared],
        "resume": [resume_equals_unbroken(method, form) for method in ("mse", *FOUR[2:])],
        "gpu_tests": run_gpu_tests(form.out),
    }


def differences(out: Path) -> list[str]:
    """Return the methods of a written part that do not agree, and runs that did not resume exactly."""
    file = out / "correctness.json"
    if not file.exists():
        return []
    results = json.loads(file.read_text())
    methods_ = [each["method"] for each in results["methods"] if not each["agrees"]]
    return methods_ + [f"resume of {each['method']}" for each in results["resume"] if each["differing"]]


def write_reference_apart(form: Form) -> None:
    """Have the same steps taken in a process that has no GPU."""
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    words = ["--part", "reference", "--out", str(form.out), *(["--toy"] if form.toy else [])]
    subprocess.run([sys.executable, str(SCRIPT), *words], check=True, env={**os.environ, **hidden})


def write_reference(form: Form) -> None:
    """Write losses and gradients of every method's step, one file a method; what is there stays."""
    for method in methods():
        file = reference_file(form.out, method)
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            save_file(first_step(step_config(method, form, "no")), file)


def reference_file(out: Path, method: str) -> Path:
    return out / "reference" / f"{method}.safetensors"


def step_config(method: str, form: Form, precision: str) -> RunConfig:
    more = [f"training.precision={precision}", f"training.batch_size={4 if form.toy else 16}"]
    augment = config_of("cifar10", method, toy=form.toy).augment
    if augment is not None and augment.kind == "ada":
        more.append("augment.initial_p=0.5")  # from the start: half of the images are changed by each operation
    return config_of("cifar10", method, toy=form.toy, more=tuple(more))


def first_step(config: RunConfig) -> dict[str, Tensor]:
    """Take one step from the seed's weights; return its scalars ("loss/...") and gradients ("generator/0", ...)."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    trainer = build_trainer(config, make_accelerator(config, training=True), Timetable(8, 16, 1))
    tensors: dict[str, Tensor] = {}

    def keep(network: str, optimizer: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, parameter in enumerate(parameters):
            if parameter.grad is not None:
                tensors.setdefault(f"{network}/{number}", parameter.grad.detach().float().cpu().clone())

    watched = {"generator": trainer.optimizer}
    if trainer.adversary is not None:
        watched["discriminator"] = trainer.discriminator_optimizer
    for network, optimizer in watched.items():
        optimizer.optimizer.register_step_pre_hook(lambda inner, *_, network=network: keep(network, inner))
    # A GPU draws other noise for path lengths than a CPU does; here both are given the CPU's.
    of_cpu = mock.patch("perceptual_mae.training.path_length_step.stream", lambda name, *at, device: stream(name, *at))
    with of_cpu:
        scalars = trainer.step(random_batches(config), FIRST_EVEN)
    losses = {f"loss/{name}": torch.as_tensor(value).detach().float().cpu() for name, value in scalars.items()}
    return {name: value.contiguous() for name, value in {**tensors, **losses}.items()}


def compare(method: str, ours: dict[str, Tensor], reference: dict[str, Tensor], bf16_is_finite: bool) -> Comparison:
    """Hold a step's losses and gradients against the reference's; raises ValueError where one side lacks some."""
    if ours.keys() != reference.keys():
        raise ValueError(f"{method}: only in one of the steps: {sorted(ours.keys() ^ reference.keys())[:5]}")
    losses = {
        name.removeprefix("loss/"): float(
            (value - reference[name]).abs().max() / reference[name].abs().max().clamp(min=1)
        )
        for name, value in ours.items()
        if name.startswith("loss/")
    }
    worst = max(losses, key=lambda name: losses[name])
    cosines = {}
    for network in ("generator", "discriminator"):
        names = [name for name in ours if name.startswith(f"{network}/")]
        if names:
            own, other = (torch.cat([side[name].flatten().double() for name in names]) for side in (ours, reference))
            cosines[network] = float(torch.nn.functional.cosine_similarity(own, other, dim=0))
    return Comparison(method, worst, losses[worst], cosines, bf16_is_finite)


@contextmanager
def float32_alone() -> Iterator[None]:
    """Switch TensorFloat-32 off for matrix products and convolutions."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


def resume_equals_unbroken(method: str, form: Form) -> dict[str, Any]:
    """Train a small run unbroken, and again stopped by SIGTERM and resumed, with deterministic kernels."""
    more = ("data.num_images=64", "training.epochs=2", "training.epoch_images=64", "training.batch_size=16")
    more += ("evaluation.limit=8", "evaluation.probe_images=0", "schedule.warmup_ratio=0.1")
    config = load_config(words_of("quickstart", method, toy=True, more=more))
    folders = {name: form.out / "resume" / f"{method}_{name}" for name in ("unbroken", "stopped")}
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pretrain(config, folders["unbroken"], quiet=True)
            with sigterm_at(SIGTERM_AT):
                try:
                    pretrain(config, folders["stopped"], quiet=True)
                except Interrupted:
                    pretrain(config, folders["stopped"], quiet=True)
    finally:
        torch.use_deterministic_algorithms(False)
    whole, resumed = (state_of(folder) for folder in folders.values())
    differing = sorted(name for name in whole.keys() | resumed.keys() if not same(whole.get(name), resumed.get(name)))
    without = {str(each.message).split(" does not have")[0] for each in caught if "deterministic" in str(each.message)}
    return {"method": method, "tensors": len(whole), "differing": differing, "without_deterministic_kernel": [*without]}


@contextmanager
def sigterm_at(step: int) -> Iterator[None]:
    """Send this process SIGTERM once, after so many steps."""
    taken, original = 0, Trainer.step

    def counted(self: Trainer, *arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    Trainer.step = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.step = original  # type: ignore[method-assign]


def state_of(run: Path) -> dict[str, Tensor]:
    """Return all tensors of a run's last checkpoint."""
    files = sorted(checkpoint.checkpoints(run / "checkpoints")[-1].glob("*.safetensors"))
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


def same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def run_gpu_tests(out: Path) -> str:
    """Return the last line of `pytest -m gpu`, or why it was not run; all it printed goes to gpu_tests.txt."""
    if not torch.cuda.is_available():
        return "not run: no GPU"
    root = SCRIPT.parents[1]
    files = [str(file) for file in sorted((root / "tests").rglob("test_*.py")) if GPU_MARK in file.read_text("utf-8")]
    words = ["-m", "pytest", "-q", "-n", "0", "-m", "gpu", "-p", "no:cacheprovider", *files]
    try:
        ran = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=TEST_SECONDS, cwd=root)
    except subprocess.TimeoutExpired:
        return f"stopped after {TEST_SECONDS} s"
    (out / "gpu_tests.txt").write_text(ran.stdout + ran.stderr, encoding="utf-8")
    lines = [*ran.stdout.splitlines(), *ran.stderr.splitlines()] or ["nothing was printed"]
    return next((line for line in reversed(lines) if "passed" in line or "failed" in line), lines[-1])


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
