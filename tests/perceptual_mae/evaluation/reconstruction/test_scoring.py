"""The scores of a run's own summary: PSNR and SSIM of the pass that `pmae evaluate` makes."""

import pytest
import torch
from accelerate import Accelerator
from pytorch_msssim import ssim
from torch import Tensor

from perceptual_mae.data.batch import Batch
from perceptual_mae.data.transforms import EvaluationTransform
from perceptual_mae.evaluation.reconstruction.baselines import BASELINES
from perceptual_mae.evaluation.reconstruction.data import HeldOut
from perceptual_mae.evaluation.reconstruction.scoring import SUMMARY_KEYS, score_training
from perceptual_mae.generator.reconstruction import Reconstruction

COUNT = 5


class Noise:
    """Random images; the same ones each time."""

    classes = ()

    def __init__(self, side: int) -> None:
        generator = torch.Generator().manual_seed(side)
        self.images = torch.randint(0, 256, (COUNT, 3, side, side), generator=generator, dtype=torch.uint8)

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], -1

    def unit(self) -> Tensor:
        return self.images.float() / 255


def darker(images: Tensor) -> Tensor:
    """A reconstruction whose error differs from image to image and from pixel to pixel."""
    return 0.7 * images


def lower_half(batch: Batch) -> Tensor:
    mask = torch.zeros(len(batch.images), 16, dtype=torch.bool)
    mask[:, 8:] = True
    return mask


def nothing(batch: Batch) -> Tensor:
    return torch.zeros(len(batch.images), 16, dtype=torch.bool)


def score(fake_of=darker, masks=lower_half, side: int = 32, baselines: bool = False):
    def reconstruct(images: Tensor, mask: Tensor) -> Reconstruction:
        return Reconstruction((fake_of(images),), (images,), mask, torch.zeros(1), torch.zeros(1), (4, 4))

    data = HeldOut("noise", Noise(side), range(COUNT), "test", EvaluationTransform((side, side)), workers=0)
    return score_training(
        reconstruct,
        data,
        masks,
        Accelerator(cpu=True),
        channels=3,
        batch_size=2,
        patch_size=side // 4,
        baselines=baselines,
    )


def test_scores_equal_torchmetrics_and_pytorch_msssim() -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio  # here: it takes seconds, in every worker

    scores, real = score(), Noise(32).unit()
    fake = darker(real)
    composite = torch.cat([real[:, :, :16], fake[:, :, 16:]], 2)

    def psnr(one: Tensor, other: Tensor) -> float:
        return float(peak_signal_noise_ratio(one, other, data_range=1.0))

    pairs = {"psnr": (composite, real), "psnr_raw": (fake, real), "psnr_masked": (fake[:, :, 16:], real[:, :, 16:])}
    for name, (one, other) in pairs.items():
        by_image = [psnr(one[i : i + 1], other[i : i + 1]) for i in range(COUNT)]
        assert scores[name] == pytest.approx(sum(by_image) / COUNT, abs=1e-4), name
    assert scores["psnr_pooled"] == pytest.approx(psnr(composite, real), abs=1e-4)
    assert scores["psnr_masked_pooled"] == pytest.approx(psnr(*pairs["psnr_masked"]), abs=1e-4)
    assert scores["ssim"] == pytest.approx(float(ssim(composite, real, data_range=1.0)), abs=2e-6)
    assert scores["ssim_raw"] == pytest.approx(float(ssim(fake, real, data_range=1.0)), abs=2e-6)


def test_the_pooled_score_of_hidden_pixels_is_of_their_errors_alone() -> None:
    def wrong_where_visible(images: Tensor) -> Tensor:
        fake = images.clone()
        fake[:, :, :16] = 1 - images[:, :, :16]
        fake[:, :, 16:] = (images[:, :, 16:] + 0.1).where(images[:, :, 16:] <= 0.5, images[:, :, 16:] - 0.1)
        return fake

    scores = score(wrong_where_visible)
    assert scores["psnr_masked_pooled"] == pytest.approx(20.0, abs=1e-4)
    assert scores["psnr_pooled"] == pytest.approx(23.0103, abs=1e-4)  # half the pixels of a composite have no error


def test_a_perfect_reconstruction_scores_100_db_and_beats_every_baseline() -> None:
    scores = score(lambda images: images, baselines=True)
    assert scores["num_images"] == COUNT
    for name in ("psnr", "psnr_raw", "psnr_masked", "psnr_pooled", "psnr_masked_pooled"):
        assert scores[name] == 100.0, name
    assert scores["ssim"] == scores["ssim_raw"] == pytest.approx(1.0)
    assert set(scores["baselines"]) == set(BASELINES)
    for row in scores["baselines"].values():
        assert set(row) == set(SUMMARY_KEYS)
        assert row["psnr_masked"] < 20
        assert (row["psnr_raw"], row["ssim_raw"]) == (row["psnr"], row["ssim"])


def test_rounding_errors_are_no_better_or_worse_than_identical_images() -> None:
    assert score(lambda images: (images + 1e-7).clamp(0, 1))["psnr"] == 100.0


def test_with_nothing_hidden_the_hidden_scores_are_absent() -> None:
    scores = score(masks=nothing)
    assert scores["psnr_masked"] is None
    assert "psnr_masked_pooled" not in scores
    assert scores["psnr"] == 100.0


def test_images_below_the_window_have_no_ssim() -> None:
    scores = score(side=8)
    assert not {"ssim", "ssim_raw"} & scores.keys()
    assert scores["psnr"] < 100
