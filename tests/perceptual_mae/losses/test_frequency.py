"""The Laplacian error against SciPy and by hand."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from perceptual_mae.losses.frequency import high_frequency, laplacian_error

ALL = torch.ones(1, 1, dtype=torch.bool)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_laplacian_is_scipys_of_each_channel() -> None:
    fake, real = rand(2, 3, 9, 7), rand(2, 3, 9, 7, seed=1)
    # SciPy calls "mirror" what torch calls "reflect": the border pixel is not repeated.
    first, second = (ndimage.laplace(images.numpy(), mode="mirror", axes=(2, 3)) for images in (fake, real))
    np.testing.assert_allclose(laplacian_error(fake, real).numpy(), np.abs(first - second), rtol=1e-12, atol=1e-12)


def test_one_bright_pixel_costs_four_and_its_neighbours_one() -> None:
    fake = torch.zeros(1, 1, 5, 5)
    fake[..., 2, 2] = 1.0
    assert laplacian_error(fake, torch.zeros(1, 1, 5, 5))[0, 0].tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 1, 4, 1, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    loss = high_frequency((fake,), (torch.zeros(1, 1, 5, 5),), ALL, (1, 1))
    assert loss.item() == pytest.approx(8 / 25)


@pytest.mark.slow
def test_kornia_is_imported_in_functions_alone() -> None:
    """Importing it takes a second, which a run pays for only where it needs it."""
    root = Path(__file__).parents[3]
    for path in [path for package in ("perceptual_mae", "discriminators") for path in (root / package).rglob("*.py")]:
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("kornia")], path


@pytest.mark.slow
def test_kornia_is_imported_by_the_runs_that_need_it_alone() -> None:
    """Neither the other terms nor a training loop import it, by themselves or through another library."""
    script = (
        "import sys, torch, perceptual_mae.training.loop, perceptual_mae.training.build\n"
        "from perceptual_mae.losses import TERMS\n"
        "images, mask = (torch.rand(2, 3, 16, 16),), torch.ones(2, 4, dtype=torch.bool)\n"
        "for name in ('l1', 'mse'): TERMS[name].function(images, images, mask, (2, 2))\n"
        "TERMS['ms_ssim'].function(images, images)\n"
        "before = 'kornia' in sys.modules\n"
        "TERMS['high_frequency'].function(images, images, mask, (2, 2))\n"
        "print(before, 'kornia' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "True"]


def test_the_laplacian_has_second_derivatives() -> None:
    fake, real = rand(1, 2, 4, 4).requires_grad_(), rand(1, 2, 4, 4, seed=1)
    assert torch.autograd.gradcheck(lambda x: laplacian_error(x, real), (fake,))
    assert torch.autograd.gradgradcheck(lambda x: laplacian_error(x, real).square(), (fake,))


def test_brightness_is_no_high_frequency() -> None:
    real = rand(2, 3, 8, 8)
    assert high_frequency((real + 0.3,), (real,), ALL.expand(2, 1), (1, 1)).item() == pytest.approx(0, abs=1e-12)


def test_hidden_pixels_alone_count_and_each_image_by_its_own_area() -> None:
    fake, real = rand(2, 3, 8, 8), rand(2, 3, 8, 8, seed=1)
    mask = torch.tensor([[True, False, False, False], [True, True, False, True]])
    error = laplacian_error(fake, real)
    first = error[0, :, :4, :4].mean()
    second = torch.cat([error[1, :, :4].flatten(), error[1, :, 4:, 4:].flatten()]).mean()
    loss = high_frequency((fake, rand(2, 3, 4, 4)), (real, rand(2, 3, 4, 4)), mask, (2, 2))
    assert loss.item() == pytest.approx((first + second).item() / 2)
    everywhere = high_frequency((fake,), (real,), mask, (2, 2), region="all")
    assert everywhere.item() == pytest.approx(error.mean().item())


def test_autocast_does_not_round_it() -> None:
    fake, real = rand(1, 3, 8, 8).float(), rand(1, 3, 8, 8, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = high_frequency((fake,), (real,), ALL, (1, 1))
    assert inside.dtype == torch.float32
    assert inside.item() == high_frequency((fake,), (real,), ALL, (1, 1)).item()


def test_other_regions_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown region"):
        high_frequency((rand(1, 3, 8, 8),), (rand(1, 3, 8, 8),), ALL, (1, 1), region="visible")
    with pytest.raises(ValueError, match="one shape"):
        laplacian_error(rand(1, 3, 8, 8), rand(1, 3, 4, 4))
