"""Compiled networks train as networks do as they are; what is compiled runs in ordinary steps alone."""

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch._dynamo.config
from torch import Tensor
from torch._dynamo.utils import counters

from conftest import debug_config, debug_trainer, random_batches
from discriminators.layers import blur_by_products
from perceptual_mae import Run, pretrain
from perceptual_mae.config.layers import list_methods
from perceptual_mae.config.parsing import load_config
from perceptual_mae.errors import UserError
from perceptual_mae.run import checkpoint
from perceptual_mae.run.signals import Interrupted
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.compilation import StepDevice, run_eagerly
from perceptual_mae.training.trainer import Trainer
from processes import run_two_processes

METHODS = sorted(method.name for method in list_methods())
SOONER = ("msg_gan_p",)
"""Methods that are compiled in the slow tier already."""
WARM_UP, STEPS = 9, 18
"""Within the first steps every kind of step has come; R1 is due again at 16."""


@pytest.fixture
def graphs() -> Iterator[Counter[str]]:
    """What torch.compile counted, from nothing; its caches are those of this test."""
    torch._dynamo.reset()
    counters.clear()
    yield counters["stats"]
    torch._dynamo.reset()


@pytest.fixture
def without_compiler(graphs: Counter[str]) -> Iterator[Counter[str]]:
    """Graphs are made and differentiated as ever, but their operations are PyTorch's own: that takes seconds."""
    with mock.patch("torch.compile", partial(torch.compile, backend="aot_eager")):
        yield graphs


@pytest.fixture
def compiled_calls() -> Iterator[Counter[str]]:
    """Calls of what would be compiled, by the name of the function; nothing is compiled."""
    calls: Counter[str] = Counter()

    def recorded(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[function.__qualname__] += 1
            return function(*arguments, **options)

        return call

    with mock.patch("torch.compile", recorded):
        yield calls


def tier(is_slow: bool) -> pytest.MarkDecorator:
    """The tier of a test that compiles for many seconds: the slow one, or the one that is run by hand."""
    return pytest.mark.slow if is_slow else pytest.mark.exhaustive


def progress_of(step: int) -> TrainingProgress:
    return TrainingProgress(1 + step % 2, step, step / STEPS)


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Weights, buffers and averaged weights."""
    owners = {"generator": trainer.unwrapped_generator, "ema": trainer.ema}
    owners |= {"discriminator": trainer.unwrapped_discriminator} if trainer.adversary is not None else {}
    return {
        f"{owner}.{name}": value.detach().clone()
        for owner, module in owners.items()
        if module is not None
        for name, value in module.state_dict().items()
    }


def check_equal_steps(graphs: Counter[str], *arguments: str, compile_: str = "all", micro_batches: int = 1) -> None:
    """Train with and without compilation in float64; afterwards no graph may be broken or made again."""
    as_they_are = debug_trainer(*arguments, dtype=torch.float64)
    compiled = debug_trainer(*arguments, f"training.compile={compile_}", dtype=torch.float64)
    for step in range(STEPS):
        batches = random_batches(4, micro_batches, seed=step)
        expected = as_they_are.step(batches, progress_of(step))
        with torch._dynamo.config.patch(error_on_recompile=step >= WARM_UP):
            before = graphs["unique_graphs"]
            scalars = compiled.step(batches, progress_of(step))
        assert step < WARM_UP or graphs["unique_graphs"] == before
        assert scalars.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(scalars[name], value, rtol=1e-8, atol=1e-10, msg=f"{name} of step {step}")
    assert graphs["unique_graphs"] > 0
    assert not counters["graph_break"]
    for (name, value), other in zip(state_of(as_they_are).items(), state_of(compiled).values(), strict=True):
        torch.testing.assert_close(other, value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("method", [pytest.param(name, marks=tier(name in SOONER)) for name in METHODS])
def test_steps_of_compiled_networks_are_those_of_networks_as_they_are(
    method: str, without_compiler: Counter[str]
) -> None:
    check_equal_steps(without_compiler, method)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("order", "compile_"), list(product(("lean", "sequential"), ("discriminator", "all"))))
def test_steps_are_equal_in_both_orders_with_micro_batches_and_averaged_weights(
    order: str, compile_: str, without_compiler: Counter[str]
) -> None:
    more = ("training.ema_kimg=0.05", "generator.drop_path=0.3", "discriminator.norm=spectral")
    arguments = ("ls_gan_p", f"training.order={order}", *more)
    check_equal_steps(without_compiler, *arguments, compile_=compile_, micro_batches=2)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options",
    [
        ("msg_gan_p", "generator.relative_positions=true", "generator.encoder_mask_tokens=true"),
        ("ls_gan_p", "generator.decoder_attention=cross", "losses.adversarial.reach=decoder"),
        ("mse", "masking={kind: attention}", "optimizer.clip_norm=0.5"),
        ("ls_gan_p", "masking.ratio={from: 0.4, to: 0.8}"),
    ],
    ids=lambda options: " ".join(options),
)
def test_steps_are_equal_with_other_parts_of_the_generator_and_other_masks(
    options: tuple[str, ...], without_compiler: Counter[str]
) -> None:
    with mock.patch(f"{__name__}.WARM_UP", STEPS if "ratio" in options[-1] else WARM_UP):
        check_equal_steps(without_compiler, *options)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler, g++")
@pytest.mark.parametrize("precision", [pytest.param("no", marks=tier(True)), pytest.param("bf16", marks=tier(False))])
def test_compiled_gradients_are_those_of_networks_as_they_are(precision: str, graphs: Counter[str]) -> None:
    gradients: list[list[Tensor]] = []
    for compile_ in ("off", "all"):
        trainer = debug_trainer("msg_gan_p", f"training.precision={precision}", f"training.compile={compile_}")
        collected: list[Tensor] = []

        def collect(*_: Any, trainer: Trainer = trainer, collected: list[Tensor] = collected) -> None:
            collected += [each.grad.clone() for each in trainer.trained_parameters if each.grad is not None]

        with mock.patch.object(trainer, "update_if_finite", collect):
            trainer.step(random_batches(4), TrainingProgress(2, 9, 0.5))
        gradients.append(collected)
    assert graphs["unique_graphs"] >= 5
    assert not counters["graph_break"]
    if precision == "bf16":  # both round, at other places: of single weights by up to a tenth
        whole = [torch.cat([each.flatten() for each in gradient]).double() for gradient in gradients]
        assert float(torch.cosine_similarity(*whole, dim=0)) > 0.999
        return
    largest = max(float(each.norm()) for each in gradients[0])
    for own, compiled in zip(*gradients, strict=True):
        assert float((own - compiled).norm()) <= 1e-4 * float(own.norm()) + 1e-6 * largest


@pytest.mark.slow
def test_two_processes_train_compiled_networks_as_one_does(tmp_path: Path) -> None:
    run_two_processes(Path(__file__).parent / "compiled_processes.py", tmp_path / "two.pt")
    two = torch.load(tmp_path / "two.pt")
    trainer = debug_trainer("ls_gan_p", dtype=torch.float64)
    for step in range(3):
        trainer.step(random_batches(4, seed=step), progress_of(1 + step))
    for name, value in state_of(trainer).items():
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.exhaustive
def test_a_compiled_run_that_is_resumed_equals_an_unbroken_one_and_its_checkpoints_are_ordinary(
    tmp_path: Path, without_compiler: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ("ls_gan_p", "training.ema_kimg=0.05")
    config = debug_config(*plain, "training.compile=all")
    pretrain(config, tmp_path / "whole", quiet=True)
    assert without_compiler["unique_graphs"] > 0
    step, taken = Trainer.step, Counter[str]()

    def interrupted(self: Trainer, *arguments: Any) -> dict[str, Tensor]:
        taken["steps"] += 1
        if taken["steps"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(Interrupted, match="after step 3"):
        pretrain(config, tmp_path / "parts", quiet=True)
    pretrain(config, tmp_path / "parts", quiet=True)
    pretrain(debug_config(*plain), tmp_path / "plain", quiet=True)
    whole, parts, other = (tensors_of(tmp_path / name) for name in ("whole", "parts", "plain"))
    assert whole.keys() == parts.keys() == other.keys()
    assert [name for name, value in whole.items() if not torch.equal(value, parts[name])] == []
    generator = Run(tmp_path / "whole").generator(ema=False)
    assert {f"generator.{name}" for name in generator.state_dict()} <= whole.keys()


def tensors_of(run: Path) -> dict[str, Tensor]:
    newest, _ = checkpoint.newest_whole(run / "checkpoints", set())
    groups = ("generator", "generator_ema", "discriminator")
    return {
        f"{group}.{name}": value for group in groups for name, value in checkpoint.load_tensors(newest, group).items()
    }


def test_nothing_is_compiled_by_default(compiled_calls: Counter[str]) -> None:
    trainer = debug_trainer("ls_gan_p")
    trainer.step(random_batches(2), TrainingProgress(2, 9, 0.5))
    assert not compiled_calls
    assert type(trainer.unwrapped_discriminator).forward.__name__ == "forward"
    assert "decode" not in vars(trainer.unwrapped_generator.decoder)


PIECES = {"MaskedAutoencoder.encode": 1, "Decoder.to_latent": 1, "Decoder.decode": 1}


@pytest.mark.parametrize(("compile_", "pieces"), [("discriminator", {}), ("all", PIECES)])
def test_an_ordinary_step_runs_compiled_networks_and_lazy_penalties_run_them_as_they_are(
    compile_: str, pieces: dict[str, int], compiled_calls: Counter[str]
) -> None:
    penalties = "penalties={r1: {every: 4}, path_length: {every: 4}}"
    trainer = debug_trainer("msg_gan_p", f"training.compile={compile_}", penalties)
    batches = random_batches(2)
    trainer.step(batches, TrainingProgress(2, 1, 0.5))
    assert compiled_calls == {"MSGGAN.forward": 2} | pieces
    compiled_calls.clear()
    assert trainer.adversary.r1.is_due(8)
    assert trainer.adversary.path_length.is_due(8)
    scalars = trainer.step(batches, TrainingProgress(2, 8, 0.5))
    assert scalars.keys() >= {"penalty/r1", "penalty/path_length"}
    assert compiled_calls == pieces  # not the path length's second pass, nor a discriminator whose gradient has one


def test_held_out_images_are_scored_by_networks_as_they_are(tmp_path: Path, compiled_calls: Counter[str]) -> None:
    config = debug_config("ls_gan_p", "training.compile=all", "training.epochs=1", "training.ema_kimg=1")
    pretrain(config, tmp_path / "run", quiet=True)
    steps = config.training.epoch_images // config.training.batch_size
    assert compiled_calls["Decoder.decode"] == steps


def test_a_trainer_that_is_counted_runs_networks_as_they_are(compiled_calls: Counter[str]) -> None:
    trainer = debug_trainer("mse", "training.compile=all")
    with run_eagerly():
        trainer.step(random_batches(2), TrainingProgress(1, 1, 0.1))
    assert not compiled_calls
    trainer.step(random_batches(2), TrainingProgress(1, 2, 0.1))
    assert compiled_calls == PIECES


def test_a_blur_of_matrix_products_is_one_graph_whose_matrices_are_constants(graphs: Counter[str]) -> None:
    made: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        made.append(graph)
        return graph

    images = torch.rand(2, 4, 8, 8).to(memory_format=torch.channels_last)
    compiled = torch.compile(partial(blur_by_products, padding=1, step=2), fullgraph=True, backend=keep)
    torch.testing.assert_close(compiled(images), blur_by_products(images, 1, 2), rtol=0, atol=0)
    (graph,) = made
    called = [str(node.target) for node in graph.graph.nodes if node.op in ("call_function", "call_method")]
    assert not [name for name in called if "zeros" in name or "fill" in name or name == "to"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("training.cuda_graphs=true",), "compile is off; set training.compile=all"),
        (
            ("training.cuda_graphs=true", "training.compile=all", "masking.ratio={from: 0.5, to: 0.75}"),
            "goes from 0.5 to 0.75; set training.compile=discriminator",
        ),
        (("training.compile=everything",), "training.compile"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_a_line(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(["quickstart", *arguments])
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_cuda_graphs_without_a_gpu_and_compilation_without_a_compiler_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match="needs a CUDA GPU, but this is a run on cpu; set it to false"):
        StepDevice(torch.device("cpu"), "all", cuda_graphs=True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"no C\+\+ compiler \(g\+\+\); install one, or set training.compile=off"):
        debug_trainer("mse", "training.compile=all")


def flags() -> tuple[bool, bool, bool]:
    backends = torch.backends
    return backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("benchmark", [False, True])
def test_tensor_float_and_trials_are_on_within_steps_alone(tf32: bool, benchmark: bool) -> None:
    debug_trainer("mse")  # as every run, training or scored, it sets float32 to be exact
    assert flags() == (False, False, False)
    device = StepDevice(torch.device("cuda"), tf32=tf32, cudnn_benchmark=benchmark)
    device.begin_step(None, 0)
    assert flags() == (tf32, tf32, benchmark)
    device.end_step()
    assert flags() == (False, False, False)


def test_deterministic_kernels_are_not_chosen_by_trial() -> None:
    device = StepDevice(torch.device("cuda"), cudnn_benchmark=True)
    torch.use_deterministic_algorithms(True)
    try:
        device.begin_step(None, 0)
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
        device.end_step()


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (("training.precision=bf16",), True),
        (("training.precision=bf16", "training.tf32=false"), False),
        ((), False),
        (("training.tf32=true",), True),
    ],
)
def test_tensor_float_goes_with_autocast_unless_it_is_stated(arguments: tuple[str, ...], allowed: bool) -> None:
    from perceptual_mae.training import build

    with mock.patch.object(build, "StepDevice") as made:
        made.return_value = StepDevice(torch.device("cpu"))
        debug_trainer("mse", *arguments)
    assert made.call_args.kwargs["tf32"] is allowed
    assert made.call_args.kwargs["cudnn_benchmark"] is True
