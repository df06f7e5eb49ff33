"""Wavelet filters: published taps, perfect reconstruction, bands that add up, double differentiability."""

import pytest
import torch
import torch.nn.functional as F
from ada_cases import photo_like

from discriminators.augmentation.wavelets import SYM2, SYM6, double, halve, lowpass, octaves, reflect, weigh_octaves


@pytest.mark.parametrize("taps", [SYM6, SYM2])
def test_taps_sum_to_1_and_are_orthogonal_to_even_shifts_of_themselves(taps):
    kernel = lowpass(taps)
    assert kernel.sum().item() == pytest.approx(1, abs=1e-12)
    for shift in range(0, len(taps), 2):
        product = (kernel[shift:] * kernel[: len(taps) - shift]).sum().item()
        assert product == pytest.approx(0.5 if shift == 0 else 0, abs=2e-8)
    alternating = kernel * torch.tensor([1.0, -1.0]).repeat(len(taps) // 2)
    assert alternating.sum().item() == pytest.approx(0, abs=1e-7)  # a constant image stays one


def test_doubling_is_zero_insertion_and_filtering_with_gain_4():
    images = photo_like(2, 3, 20, 41)
    spread = torch.zeros(2, 3, 40, 82, dtype=torch.float64)
    spread[..., ::2, ::2] = images
    kernel = lowpass().flip(0)
    kernel = 4 * torch.outer(kernel, kernel).expand(3, 1, -1, -1)
    filtered = F.conv2d(F.pad(spread, (5, 6, 5, 6)), kernel, groups=3)
    # With 5 zeros in front, number i holds tap 5 on number i + 1; the first sample without zeros is the sixth.
    torch.testing.assert_close(double(images), filtered[..., 5:33, 5:75])


@pytest.mark.parametrize("size", [(32, 32), (33, 40), (7, 100)])
def test_halving_undoes_doubling_and_is_its_adjoint(size):
    images = photo_like(1, 2, *size)
    samples = double(reflect(images, 6, 6))  # from pixel -3 on: sample -6 to 2 side + 5
    torch.testing.assert_close(halve(samples[..., 1:-1, 1:-1]), images, rtol=0, atol=1e-7)
    flat = double(reflect(torch.full_like(images, 0.7), 6, 6))
    torch.testing.assert_close(flat, torch.full_like(flat, 0.7), rtol=0, atol=1e-7)


@pytest.mark.slow
def test_filters_are_twice_differentiable():
    images = photo_like(1, 1, 9, 8).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: halve(double(reflect(x, 6, 6))[..., 1:-1, 1:-1]).square(), images)
    gains = torch.tensor([[1.5, 0.5, 2.0]], dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: weigh_octaves(x, gains).square(), images)


@pytest.mark.parametrize(("count", "taps"), [(1, 1), (2, 7), (3, 19), (4, 43)])
def test_octaves_sum_to_an_impulse_and_are_in_order(count, taps):
    bands = octaves(count)
    assert bands.shape == (count, taps)
    impulse = torch.zeros(taps, dtype=torch.float64)
    impulse[taps // 2] = 1
    torch.testing.assert_close(bands.sum(dim=0), impulse)
    torch.testing.assert_close(bands, bands.flip(1))
    response = torch.fft.rfft(bands, n=512).abs()
    assert response[0, 0].item() == pytest.approx(1)
    centers = (response * torch.arange(257)).sum(dim=1) / response.sum(dim=1)
    assert torch.equal(centers.argsort(), torch.arange(count))
    # The highest band passes the finest pattern alone; each lower band lies an octave below.
    for band in range(1, count):
        peak = response[band].argmax().item()
        low, high = 256 // 2 ** (count - band), 256 // 2 ** (count - band - 1)
        assert low <= peak <= high


def test_equal_gains_scale_an_image_and_band_gains_act_on_their_octave():
    images = photo_like(2, 3, 48, 40)
    gains = torch.tensor([[1.0] * 4, [0.5] * 4], dtype=torch.float64)
    weighed = weigh_octaves(images, gains)
    torch.testing.assert_close(weighed[0], images[0])
    torch.testing.assert_close(weighed[1], images[1] / 4)  # along both axes
    stripes = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(24).expand(1, 1, 48, 48)
    without_finest = weigh_octaves(stripes, torch.tensor([[1.0, 1, 1, 0]], dtype=torch.float64))
    torch.testing.assert_close(without_finest, torch.full_like(stripes, 0.5))


def test_a_level_without_the_highest_octave_is_filtered_as_the_whole_image_is():
    images = photo_like(1, 1, 128, 128)
    for _ in range(3):  # nothing in the highest octave
        images = weigh_octaves(images, torch.tensor([[1.0, 1, 0.5, 0]], dtype=torch.float64))
    gains = torch.tensor([[1.2, 0.4, 1.7, 3.0]], dtype=torch.float64)
    small = F.avg_pool2d(images, 2)
    expected, got = F.avg_pool2d(weigh_octaves(images, gains), 2), weigh_octaves(small, gains[:, :3])
    unfiltered = (small - expected)[..., 16:-16, 16:-16].square().mean().sqrt()
    assert (got - expected)[..., 16:-16, 16:-16].square().mean().sqrt() < 0.1 * unfiltered


def test_reflection_goes_back_and_forth_in_margins_wider_than_the_image():
    rows = torch.arange(3.0).view(1, 1, 1, 3).expand(1, 1, 3, 3)
    assert reflect(rows, 5, 0)[0, 0, 0].tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    assert reflect(rows, 0, 5)[0, 0, :, 0].tolist() == [0.0] * 13
