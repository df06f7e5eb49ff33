"""Reconstruction scores and the fillings they are compared with, on hand-made images."""

import math

import pytest
import torch
from accelerate import Accelerator
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from conftest import random_batches
from perceptual_mae.evaluation.reconstruction import baselines
from perceptual_mae.evaluation.reconstruction.own_score import image_scores, psnr, score_reconstructions
from perceptual_mae.generator.reconstruction import Reconstruction
from perceptual_mae.images import mask_image, unpatchify

GRID = (4, 4)


def half_mask(count: int) -> torch.Tensor:
    mask = torch.zeros(16, dtype=torch.bool)
    mask[8:] = True
    return mask.expand(count, 16)


def test_a_mean_squared_error_of_one_hundredth_is_20_db() -> None:
    assert float(psnr(torch.tensor(0.01))) == pytest.approx(20.0)


def test_scores_equal_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(3, 3, 32, 32, generator=generator)
    fake = (real + 0.1 * torch.randn(real.shape, generator=generator)).clamp(0, 1)
    scores = image_scores(fake, real, half_mask(3), GRID)
    composite = torch.lerp(real, fake, mask_image(half_mask(3), GRID, (32, 32)))
    for i in range(3):
        expected = peak_signal_noise_ratio(composite[i : i + 1], real[i : i + 1], data_range=1.0)
        assert float(scores["psnr"][i]) == pytest.approx(float(expected), abs=1e-4)
        lower = peak_signal_noise_ratio(fake[i : i + 1, :, 16:], real[i : i + 1, :, 16:], data_range=1.0)
        assert float(scores["psnr_masked"][i]) == pytest.approx(float(lower), abs=1e-4)
    # torchmetrics pads; without the border both are the same map.
    expected = structural_similarity_index_measure(fake, real, data_range=1.0, reduction="none")
    assert scores["ssim_raw"].tolist() == pytest.approx(expected.tolist(), abs=2e-2)


def test_identical_images_score_100_db_and_ssim_1() -> None:
    real = torch.rand(2, 3, 32, 32)
    scores = image_scores(real, real, half_mask(2), GRID)
    assert scores["psnr"].tolist() == [100.0, 100.0]
    assert scores["ssim"].tolist() == pytest.approx([1.0, 1.0])


def test_an_image_outside_the_unit_range_is_refused_with_its_range() -> None:
    real = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"reconstruction must lie in \[0, 1\], but lies in \[-1, 1\]"):
        image_scores(torch.linspace(-1, 1, 3072).view(1, 3, 32, 32), real, half_mask(1), GRID)


@pytest.mark.parametrize("fill", baselines.BASELINES.values(), ids=list(baselines.BASELINES))
def test_a_filling_keeps_the_visible_pixels_and_never_sees_the_hidden_ones(fill) -> None:
    real, mask = torch.rand(2, 3, 32, 32), half_mask(2)
    hidden = mask_image(mask, GRID, (32, 32)).bool().expand_as(real)
    filled = fill(real, mask, 8)
    assert torch.equal(filled[~hidden], real[~hidden])
    changed = torch.where(hidden, torch.rand_like(real), real)
    assert torch.equal(fill(changed, mask, 8), filled)


def test_mean_color_is_the_mean_of_the_visible_pixels() -> None:
    real = torch.zeros(1, 3, 32, 32)
    real[:, 0, :16] = 0.25
    real[:, 1, :8] = 1.0
    filled = baselines.mean_color(real, half_mask(1), 8)
    assert filled[0, :, 31, 31].tolist() == pytest.approx([0.25, 0.5, 0.0])


def test_nearest_patch_copies_the_closest_visible_patch() -> None:
    real = unpatchify((torch.arange(16.0) / 16).view(1, 16, 1).expand(1, 16, 64), 8, GRID)
    filled = baselines.nearest_patch(real, half_mask(1), 8)
    for column in range(4):
        below, above = filled[0, 0, 24, 8 * column], real[0, 0, 8, 8 * column]
        assert float(below) == float(above)


def test_inverse_distance_weighs_by_the_square_of_the_distance() -> None:
    real = torch.zeros(1, 1, 8, 24)
    real[..., :8] = 1.0  # patches: 1, hidden, 0 -> equal distances
    mask = torch.tensor([[False, True, False]])
    assert float(baselines.inverse_distance(real, mask, 8)[0, 0, 0, 12]) == pytest.approx(0.5)
    mask = torch.tensor([[False, False, True]])
    assert float(baselines.inverse_distance(real, mask, 8)[0, 0, 0, 20]) == pytest.approx((1 / 4) / (1 / 4 + 1))


def perfect(images: torch.Tensor, mask: torch.Tensor) -> Reconstruction:
    return Reconstruction((images,), (images,), mask, torch.zeros(1), torch.zeros(1), GRID)


def test_a_perfect_reconstruction_beats_every_baseline_and_every_image_counts_once() -> None:
    batches = [*random_batches(3), *random_batches(2, seed=1)]
    scores = score_reconstructions(
        perfect, batches, lambda batch: half_mask(len(batch.images)), Accelerator(cpu=True), 8, baselines=True
    )
    assert scores["num_images"] == 5
    assert scores["psnr"] == 100.0
    assert set(scores["baselines"]) == set(baselines.BASELINES)
    assert all(row["psnr_masked"] < 20 for row in scores["baselines"].values())


def test_with_nothing_hidden_the_hidden_scores_are_absent() -> None:
    nothing = torch.zeros(2, 16, dtype=torch.bool)
    scores = score_reconstructions(perfect, random_batches(2), lambda _: nothing, Accelerator(cpu=True), 8)
    assert scores["psnr_masked"] is None
    assert "psnr_masked_pooled" not in scores
    assert math.isfinite(scores["psnr"])
