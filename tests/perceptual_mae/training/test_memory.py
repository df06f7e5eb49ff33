"""Memory of training: estimated without any, close to what is kept, and refused beyond the machine."""

from pathlib import Path
from unittest import mock

import pytest
import torch

from conftest import DEBUG, debug_config, random_batches
from perceptual_mae.cli import main
from perceptual_mae.config import build
from perceptual_mae.config.parsing import RunConfig, load_config
from perceptual_mae.errors import UserError
from perceptual_mae.images import pyramid_sizes
from perceptual_mae.masking import num_hidden
from perceptual_mae.training import memory
from perceptual_mae.training.memory import MemoryEstimate, check_memory, estimate_memory

GIGANTIC = ["generator.depth=256", "generator.width=16384"]


def estimate_of(config: RunConfig, processes: int = 1) -> MemoryEstimate:
    with torch.device("meta"):
        generator = build.build_generator(config.generator, config.data.image, 0)
        discriminator = build.build_discriminator(config.discriminator, config.data.image, 0, generator.encoder)
    return estimate_memory(config, generator, discriminator, processes)


def kept_for_backward(config: RunConfig) -> int:
    """Bytes that the same passes of the same batch keep on the CPU."""
    generator = build.build_generator(config.generator, config.data.image, 0)
    discriminator = build.build_discriminator(config.discriminator, config.data.image, 0, generator.encoder)
    networks = [network for network in (generator, discriminator) if network is not None]
    constant = {each.data_ptr() for network in networks for each in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in constant:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    size, patches = config.training.batch_size, generator.grid[0] * generator.grid[1]
    images = random_batches(size)[0].images.float() / 255
    mask = (torch.arange(patches) < num_hidden(patches, 0.75)).expand(size, -1)
    levels = [torch.zeros(size, 3, *each) for each in pyramid_sizes(config.data.size)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = [generator(images, mask)]
        outputs += [discriminator(levels) for _ in range(2)] if discriminator is not None else []
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("method", ["mse", "ls_gan_p", "stylegan2_ada_p"])
def test_the_estimate_without_memory_is_what_the_passes_keep_on_the_cpu(method: str) -> None:
    config = debug_config(method)
    assert estimate_of(config).activations == pytest.approx(kept_for_backward(config), rel=0.05)


def test_what_the_discriminator_is_not_shown_is_not_kept() -> None:
    options = ("discriminator.batch_share=0.5",), ("discriminator.crop=16",)
    plain, whole, half, square = (
        estimate_of(debug_config(*words)).activations
        for words in (("mse",), *(("ls_gan_p", *o) for o in ((), *options)))
    )
    assert whole - half == pytest.approx((whole - plain) / 2, rel=0.05)
    assert 0.75 < (whole - square) / (whole - plain) < 0.85  # three quarters of the pixels, and a stage less


def test_weights_gradients_optimiser_and_average_are_counted_in_float32() -> None:
    config = debug_config("mse", "training.ema_kimg=1")
    estimate, parameters = estimate_of(config), 89_984
    assert (estimate.gradients, estimate.optimizers) == (4 * parameters, 8 * parameters)
    assert estimate.weights >= estimate.average >= 4 * parameters
    assert estimate.total == sum(vars(estimate).values())
    frozen = estimate_of(debug_config("mse", "generator.freeze_encoder=true"))
    assert frozen.gradients < estimate.gradients
    assert frozen.weights == estimate.weights


def test_micro_batches_and_processes_share_the_activations() -> None:
    whole = estimate_of(debug_config("mse")).activations
    assert estimate_of(debug_config("mse", "training.accumulation=2")).activations == whole // 2
    assert estimate_of(debug_config("mse"), processes=4).activations == whole // 4


@pytest.mark.parametrize(
    ("machine", "remedy"),
    [(2_000_000, "lower training.batch_size or raise training.accumulation"), (10_000, "choose a smaller network")],
)
def test_a_run_beyond_the_machine_is_refused_before_its_folder_is_made(
    machine: int, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mock.patch.object(memory, "machine_memory", return_value=(machine, "this machine")):
        assert main(["pretrain", DEBUG, "mse", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pmae: training needs at least 2.8 MB (weights 0.4 MB, gradients 0.4 MB, optimizers 0.7 MB,")
    assert line.endswith(f"MB; {remedy}")
    assert not list(tmp_path.iterdir())


def test_what_the_refusal_advises_is_enough() -> None:
    machine = mock.patch.object(memory, "machine_memory", return_value=(2_500_000, "this machine"))
    with machine, pytest.raises(UserError, match=r"raise training\.accumulation"):
        check_memory(debug_config("mse"))
    with machine:
        check_memory(debug_config("mse", "training.accumulation=2"))
        check_memory(debug_config("mse", "training.batch_size=4"))


@pytest.mark.slow
def test_a_dry_run_of_any_size_allocates_nothing_and_says_what_it_would_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert main(["pretrain", DEBUG, "mse", *GIGANTIC, "--dry-run", "--out", out]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory: ")]
    assert line.startswith("memory: at least 13,2")
    assert line.endswith("choose a smaller network; here it is refused")
    with pytest.raises(UserError, match=r"but (this machine|the GPU) has"):
        check_memory(load_config([DEBUG, "mse", *GIGANTIC]))
    assert not list(tmp_path.iterdir())
