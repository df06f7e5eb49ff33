"""Both forms of multi-scale SSIM against hand-worked values and independent implementations."""

import numpy as np
import pytest
import torch
from pytorch_msssim import ms_ssim as reference_ms_ssim
from scipy.ndimage import uniform_filter
from torch import Tensor

from perceptual_mae.images import pyramid
from perceptual_mae.losses.ms_ssim import ms_ssim


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def edge(side: int) -> Tensor:
    """Left half 0, right half 1."""
    image = torch.zeros(1, 1, side, side)
    image[..., side // 2 :] = 1
    return image


def similar(real: Tensor, noise: float = 0.3, seed: int = 9) -> Tensor:
    return torch.lerp(real, rand(*real.shape, seed=seed, dtype=real.dtype), noise)


def numpy_ssim(fake: np.ndarray, real: np.ndarray) -> np.ndarray:
    """SSIM map of one plane under a 3x3 mean, written from the definition."""

    def mean(plane):
        return uniform_filter(plane, 3, mode="mirror")

    covariance = mean(fake * real) - mean(fake) * mean(real)
    variances = mean(fake**2) - mean(fake) ** 2 + mean(real**2) - mean(real) ** 2
    luminance = (2 * mean(fake) * mean(real) + 1e-4) / (mean(fake) ** 2 + mean(real) ** 2 + 1e-4)
    return luminance * (2 * covariance + 9e-4) / (variances + 9e-4)


def numpy_paper(fake: np.ndarray, real: np.ndarray, levels: int) -> float:
    per_level = []
    for _ in range(levels):
        planes = zip(fake.reshape(-1, *fake.shape[2:]), real.reshape(-1, *real.shape[2:]), strict=True)
        ssim = np.mean([numpy_ssim(f, r) for f, r in planes])
        per_level.append(0.85 * (1 - ssim) / 2 + 0.15 * np.abs(fake - real).mean())
        fake, real = (
            x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5)) for x in (fake, real)
        )
    return float(np.mean(per_level))


# The paper's form


def test_paper_form_of_two_constants():
    fake, real = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.6)
    assert ms_ssim((fake,), (real,), alpha=1).item() == pytest.approx(0.0081954, abs=1e-6)  # SSIM .983609
    assert ms_ssim((fake,), (real,)).item() == pytest.approx(0.85 * 0.0081954 + 0.15 * 0.1, abs=1e-6)


def test_paper_form_of_an_edge_at_half_contrast():
    real = edge(16)
    fake = real / 2 + 0.25
    assert ms_ssim((fake,), (real,)).item() == pytest.approx(0.197091, abs=1e-6)
    assert ms_ssim((fake,), (real,), reduction="sum").item() == pytest.approx(0.788363, abs=3e-6)
    assert ms_ssim((fake,), (real,), alpha=0).item() == pytest.approx(0.25)
    sums = [0.0] + [ms_ssim((fake,), (real,), alpha=1, reduction="sum", levels=levels).item() for levels in range(1, 5)]
    assert np.diff(sums) == pytest.approx([0.240441, 0.221282, 0.182964, 0.106328], abs=2e-6)


def test_paper_form_of_one_scale_may_have_negative_similarity():
    real = edge(8)
    for fake, ssim in ((real / 2 + 0.25, 0.557436), (1 - real, -0.199126)):
        loss = ms_ssim((fake,), (real,), alpha=1, levels=1).item()
        assert loss == pytest.approx((1 - ssim) / 2, abs=1e-6)
        assert numpy_ssim(fake[0, 0].double().numpy(), real[0, 0].double().numpy()).mean() == pytest.approx(
            ssim, abs=1e-6
        )


@pytest.mark.parametrize(("size", "levels"), [((8, 8), 3), ((16, 16), 4), ((32, 32), 4), ((96, 64), 4), ((4, 64), 2)])
def test_paper_form_equals_numpy_with_as_many_scales_as_fit(size, levels):
    real = rand(2, 3, *size, dtype=torch.float64)
    fake = similar(real)
    assert ms_ssim((fake,), (real,)).item() == pytest.approx(numpy_paper(fake.numpy(), real.numpy(), levels), abs=1e-12)
    assert ms_ssim((fake.float(),), (real.float(),)).item() == pytest.approx(
        numpy_paper(fake.numpy(), real.numpy(), levels), abs=2e-6
    )


# Wang's form


@pytest.mark.parametrize("size", [(161, 161), (176, 192), (224, 224), (163, 230)])
@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_wang_form_equals_pytorch_msssim_above_160_pixels(size, noise):
    real = torch.nn.functional.interpolate(rand(2, 3, 24, 24), size=size, mode="bicubic").clamp(0, 1)
    fake = similar(real, noise)
    expected = 1 - reference_ms_ssim(fake, real, data_range=1.0)
    assert ms_ssim((fake,), (real,), form="wang").item() == pytest.approx(expected.item(), abs=1e-5)


def test_wang_form_with_a_small_window_equals_pytorch_msssim_above_96_pixels():
    real = rand(2, 3, 97, 128)
    fake = similar(real)
    expected = 1 - reference_ms_ssim(fake, real, data_range=1.0, win_size=7)
    assert ms_ssim((fake,), (real,), form="wang", window=7).item() == pytest.approx(expected.item(), abs=1e-5)


def dense_wang(fake: Tensor, real: Tensor, window: int, levels: int) -> float:
    """MS-SSIM from the definition: every window taken out as a patch, weighted by a two-dimensional Gaussian."""
    offsets = torch.arange(window, dtype=torch.float64) - window // 2
    gaussian = torch.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / 4.5)
    gaussian = gaussian / gaussian.sum()
    exponents = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:levels]
    product = torch.ones(fake.shape[:2], dtype=torch.float64)
    for level in range(levels):
        f, r = (x.unfold(2, window, 1).unfold(3, window, 1) for x in (fake, real))
        f_mean, r_mean = ((x * gaussian).sum((-2, -1), keepdim=True) for x in (f, r))
        covariance = ((f - f_mean) * (r - r_mean) * gaussian).sum((-2, -1))
        variances = (((f - f_mean) ** 2 + (r - r_mean) ** 2) * gaussian).sum((-2, -1))
        term = (2 * covariance + 9e-4) / (variances + 9e-4)
        if level == levels - 1:
            term = term * ((2 * f_mean * r_mean + 1e-4) / (f_mean**2 + r_mean**2 + 1e-4))[..., 0, 0]
        product = product * term.mean((2, 3)) ** (1.0001 * exponents[level] / sum(exponents))
        fake, real = pyramid(fake, 2)[1], pyramid(real, 2)[1]
    return 1 - product.mean().item()


@pytest.mark.parametrize(
    ("side", "window", "levels"), [(32, 11, 2), (32, 7, 3), (64, 11, 3), (16, 11, 1), (160, 11, 4)]
)
def test_wang_form_of_small_images_uses_as_many_scales_as_fit(side, window, levels):
    real = rand(1, 2, side, side, dtype=torch.float64)
    fake = similar(real)
    loss = ms_ssim((fake,), (real,), form="wang", window=window).item()
    assert loss == pytest.approx(dense_wang(fake, real, window, levels), abs=1e-10)


@pytest.mark.parametrize("side", [32, 176])
def test_wang_form_keeps_a_gradient_where_contrasts_are_opposite(side):
    real = rand(2, 3, side, side)
    fake = (1 - real).requires_grad_()
    loss = ms_ssim((fake,), (real,), form="wang")
    (gradient,) = torch.autograd.grad(loss, fake)
    assert 1 < loss.item() <= 1.1001
    assert gradient.isfinite().all()
    assert (gradient.abs().amax(dim=(2, 3)) > 1e-9).all()
    closer = fake.detach() - gradient * (0.01 / gradient.abs().max())
    assert ms_ssim((closer,), (real,), form="wang") < loss


def test_one_opposite_scale_does_not_silence_the_others():
    checks = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(16, 16).sub(0.5)  # gone after 2x2 pooling
    coarse = 0.4 + 0.2 * torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    real, fake = coarse + 0.4 * checks, coarse - 0.4 * checks
    loss = ms_ssim((fake,), (real,), form="wang").item()
    fine = 0.0448 * 1.0001 / (0.0448 + 0.2856)  # the exponent of the finer of two scales
    assert loss == pytest.approx(1 - 1e-4**fine + 0.1 * fine * 0.95, abs=0.001)  # its contrast is about -.95

    fake = (fake * 0.9).requires_grad_()
    (gradient,) = torch.autograd.grad(ms_ssim((fake,), (real,), form="wang"), fake)
    pooled = torch.nn.functional.avg_pool2d(gradient, 2)
    assert pooled.abs().max() > 1e-6  # the coarser scale, which does not see the checks, still speaks


def test_wang_form_descends_from_opposite_images_to_the_right_ones():
    real = rand(1, 1, 32, 32)
    fake = (1 - real).requires_grad_()
    optimizer = torch.optim.Adam([fake], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss = ms_ssim((fake,), (real,), form="wang")
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


# Both


@pytest.mark.parametrize("form", ["paper", "wang"])
@pytest.mark.parametrize("value", ["same", "constant"])
def test_identical_images_cost_nothing_and_keep_a_finite_gradient(form, value):
    real = rand(2, 3, 32, 32) if value == "same" else torch.zeros(2, 3, 32, 32)
    fake = real.clone().requires_grad_()
    loss = ms_ssim((fake,), (real,), form=form)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert fake.grad.isfinite().all()


@pytest.mark.parametrize(("form", "shape"), [("paper", (1, 1, 8, 8)), ("wang", (1, 1, 14, 14))])  # 3 and 2 scales
@pytest.mark.parametrize("opposite", [False, True])
def test_the_gradient_is_the_derivative(form, shape, opposite):
    check_gradient(form, shape, opposite)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["paper", "wang"])
@pytest.mark.parametrize("opposite", [False, True])
def test_the_gradient_of_channels_at_all_scales_is_the_derivative(form, opposite):
    check_gradient(form, (1, 2, 16, 16), opposite)


def check_gradient(form, shape, opposite):
    real = rand(*shape, dtype=torch.float64)
    fake = similar(1 - real if opposite else real, 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda image: ms_ssim((image,), (real,), form=form, window=7), fake)


@pytest.mark.parametrize("form", ["paper", "wang"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(form, dtype):
    real = rand(2, 3, 32, 32)
    fake = similar(real, 0.05).requires_grad_()
    loss = ms_ssim((fake,), (real,), form=form)
    (gradient,) = torch.autograd.grad(loss, fake)
    with torch.autocast("cpu", dtype=dtype):
        cast_loss = ms_ssim((fake,), (real,), form=form)
    (cast_gradient,) = torch.autograd.grad(cast_loss, fake)
    assert cast_loss.dtype == torch.float32
    assert torch.equal(loss, cast_loss)
    assert torch.equal(gradient, cast_gradient)


@pytest.mark.parametrize("form", ["paper", "wang"])
@pytest.mark.parametrize("images", [1, 2, 3, 5])
def test_a_batch_costs_the_mean_of_its_images(form, images):
    real = rand(images, 3, 32, 32)
    fake = similar(real)
    singles = [ms_ssim((fake[i : i + 1],), (real[i : i + 1],), form=form).item() for i in range(images)]
    assert ms_ssim((fake,), (real,), form=form).item() == pytest.approx(np.mean(singles), abs=1e-6)


@pytest.mark.parametrize("form", ["paper", "wang"])
def test_only_the_full_size_is_read(form):
    real = rand(1, 3, 32, 32)
    fake = similar(real)
    spoiled = (fake, torch.full((1, 3, 16, 16), float("nan")))
    assert torch.equal(ms_ssim(spoiled, pyramid(real, 2), form=form), ms_ssim((fake,), (real,), form=form))


def test_images_that_do_not_fit_and_bad_options_are_refused():
    small, fair = rand(1, 3, 8, 8), rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ms_ssim((small,), (small,), form="wang")
    with pytest.raises(ValueError, match="at least 2 pixels"):
        ms_ssim((small[..., :1],), (small[..., :1],))
    with pytest.raises(ValueError, match="do not match"):
        ms_ssim((fair,), (fair[:, :1],))
    for options, complaint in (
        ({"alpha": 1.5}, "alpha"),
        ({"levels": 0}, "levels"),
        ({"reduction": "max"}, "choose from"),
        ({"form": "kornia"}, "choose from"),
        ({"form": "wang", "window": 10}, "odd"),
    ):
        with pytest.raises(ValueError, match=complaint):
            ms_ssim((fair,), (fair,), **options)
