"""Per-image scores of raw, composite and hidden pixels, their means, and the pictures at either end."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from perceptual_mae.evaluation.accumulators import Accumulator, Gather, ReconstructionBatch, merge_into
from perceptual_mae.evaluation.metrics import METRICS
from perceptual_mae.evaluation.metrics.protocol import ImageMetric, Setting
from perceptual_mae.evaluation.metrics.selection import find_weights
from perceptual_mae.evaluation.reconstruction.best_and_worst import BestAndWorst
from perceptual_mae.evaluation.reconstruction.per_image import ImageScores, hidden_mean, write_csv
from perceptual_mae.images import mask_image
from perceptual_mae.losses.ms_ssim import ssim_map
from perceptual_mae.visualization.image_grid import sheet

GRID = (4, 4)
NAMES = ("l1", "mse", "psnr", "ssim", "box_ssim", "high_frequency")


def batch_of(real: Tensor, raw: Tensor, mask: Tensor, first: int = 0, **more: Any) -> ReconstructionBatch:
    hidden = mask_image(mask, GRID, (real.shape[2], real.shape[3]))
    indices = torch.arange(first, first + len(real))
    return ReconstructionBatch(
        real, raw, torch.lerp(real, raw, hidden), mask, hidden, indices, -torch.ones_like(indices), **more
    )


def lower_half(count: int) -> Tensor:
    mask = torch.zeros(count, 16, dtype=torch.bool)
    mask[:, 8:] = True
    return mask


def scores_of(*batches: ReconstructionBatch, names: tuple[str, ...] = NAMES) -> tuple[dict[str, Any], ImageScores]:
    setting = Setting((32, 32), 3, torch.device("cpu"), 8, find_weights, 8)
    lines = {name: METRICS[name] for name in names}
    accumulator = ImageScores(
        {name: line.prepare(setting) for name, line in lines.items() if isinstance(line, ImageMetric)}
    )
    return finished(accumulator, *batches), accumulator


def finished(accumulator: Accumulator, *batches: ReconstructionBatch) -> dict[str, Any]:
    for batch in batches:
        accumulator.update(batch)
    return dict(accumulator.compute(Gather(Accelerator(cpu=True))))


def test_an_error_of_a_tenth_in_the_hidden_half_alone() -> None:
    real = torch.full((2, 3, 32, 32), 0.5)
    raw = torch.full_like(real, 0.7)
    raw[:, :, 16:] = 0.6  # a tenth below, two tenths in the visible half above
    scores = scores_of(batch_of(real, raw, lower_half(2)))[0]["scores"]
    assert [scores[subject]["l1"] for subject in ("raw", "composite", "masked")] == pytest.approx([0.15, 0.05, 0.1])
    assert [scores[subject]["mse"] for subject in ("raw", "composite", "masked")] == pytest.approx([0.025, 0.005, 0.01])
    assert scores["masked"]["psnr"] == pytest.approx(20.0, abs=1e-4)
    assert scores["composite"]["psnr"] == pytest.approx(23.0103, abs=1e-4)
    # The composite has one edge: its Laplacian is a tenth in the two rows beside it.
    assert scores["composite"]["high_frequency"] == pytest.approx(2 * 0.1 / 32, abs=1e-6)
    assert scores["masked"]["high_frequency"] == pytest.approx(0.1 / 16, abs=1e-6)


def test_masked_ssim_averages_the_map_over_hidden_pixels() -> None:
    real, fake = torch.full((1, 1, 11, 32), 0.5), torch.full((1, 1, 11, 32), 0.5)
    fake[..., 16:] = 0.6
    hidden = torch.zeros(1, 1, 11, 32)
    hidden[..., 8:11] = 1  # windows of 11 pixels that see equal images alone: 1
    hidden[..., 21:23] = 1  # windows that see the constants 0.6 and 0.5 alone: 0.983609
    hidden[..., :4] = 1  # no window lies around these
    assert float(hidden_mean(ssim_map(fake, real), hidden)) == pytest.approx((3 + 2 * 0.983609) / 5, abs=1e-6)


def test_a_mean_over_hidden_pixels_counts_channels_and_pixels_once() -> None:
    found = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2) * torch.tensor([1.0, 10.0]).view(1, 2, 1, 1)
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    assert float(hidden_mean(found, hidden)) == (1 + 4 + 10 + 40) / 4
    assert bool(hidden_mean(found, torch.zeros(1, 1, 2, 2)).isnan())


def test_pooled_psnr_is_that_of_all_pixels_together() -> None:
    real = torch.full((2, 3, 32, 32), 0.5)
    raw = real + torch.tensor([0.1, 0.2]).view(2, 1, 1, 1)
    raw_scores = scores_of(batch_of(real, raw, lower_half(2)))[0]["scores"]["raw"]
    assert raw_scores["psnr"] == pytest.approx((20 + 13.9794) / 2, abs=1e-4)
    assert raw_scores["psnr_pooled"] == pytest.approx(16.0206, abs=1e-4)  # of a mean squared error of 0.025


def test_identical_images_are_counted_and_enter_the_mean_with_100_db() -> None:
    real = torch.full((3, 3, 32, 32), 0.5)
    raw = real.clone()
    raw[0] = 0.6
    scores = scores_of(batch_of(real, raw, lower_half(3)))[0]["scores"]
    assert scores["raw"]["psnr"] == pytest.approx((20 + 100 + 100) / 3, abs=1e-4)
    assert scores["raw"]["psnr_identical_images"] == 2
    assert scores["raw"]["psnr_pooled"] == pytest.approx(20 + 4.7712, abs=1e-4)  # a third of the error


def test_a_report_of_identical_images_is_json_without_infinity() -> None:
    real = torch.rand(2, 3, 32, 32)
    report, accumulator = scores_of(batch_of(real, real.clone(), lower_half(2)))
    reported = json.loads(json.dumps(report, allow_nan=False))["scores"]
    for subject in ("raw", "composite", "masked"):
        assert (reported[subject]["psnr"], reported[subject]["psnr_pooled"]) == (100, 100)
        assert reported[subject]["psnr_identical_images"] == 2
        assert reported[subject]["ssim"] == pytest.approx(1)
    assert accumulator.table is not None
    assert accumulator.table.column("raw/psnr").tolist() == [100] * 2


def test_with_nothing_hidden_the_masked_scores_are_absent() -> None:
    real, nothing = torch.rand(2, 3, 32, 32), torch.zeros(2, 16, dtype=torch.bool)
    report, _ = scores_of(batch_of(real, real.flip(0), nothing))
    assert report["scores"]["masked"] == dict.fromkeys(("l1", "mse", "psnr", "ssim", "high_frequency"))
    assert report["scores"]["raw"]["l1"] > 0


@pytest.mark.parametrize(("subject", "name"), [("originals", "an original"), ("raw", "an image of raw")])
def test_a_wrong_range_is_an_error_that_says_which_range_arrived(subject: str, name: str) -> None:
    images = {"originals": torch.rand(1, 3, 32, 32), "raw": torch.rand(1, 3, 32, 32)}
    images[subject] = torch.linspace(-1, 1, 3072).view(1, 3, 32, 32)
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], but has values in \[-1, 1\]"):
        scores_of(batch_of(images["originals"], images["raw"], lower_half(1)))


def test_the_spread_within_hidden_patches_is_relative_to_the_originals() -> None:
    """Vertical stripes of contrast c have a standard deviation of c / 2 in every patch and channel."""
    stripes = torch.tensor([-0.5, 0.5]).repeat(16).expand(2, 3, 32, 32)
    real, raw = 0.5 + 0.4 * stripes, 0.5 + 0.3 * stripes
    raw[:, :, 16:, :16] = 0.7  # half of the hidden patches are of one colour
    raw[:, :, 16:, 16:] = 0.5 + 0.1 * stripes[:, :, 16:, 16:]
    scores = scores_of(batch_of(real, raw, lower_half(2)), names=("patch_std",))[0]["scores"]
    hidden = (0 + 0.1) / 2 / 0.4
    assert scores["masked"]["patch_std"] == pytest.approx(hidden, abs=1e-6)
    assert scores["composite"]["patch_std"] == pytest.approx((1 + hidden) / 2, abs=1e-6)
    assert scores["raw"]["patch_std"] == pytest.approx((0.75 + hidden) / 2, abs=1e-6)


def test_the_spread_is_a_ratio_of_means_over_the_hidden_patches_of_an_image() -> None:
    torch.manual_seed(0)
    real, raw, mask = torch.rand(3, 3, 32, 32), torch.rand(3, 3, 32, 32).square(), torch.rand(3, 16) < 0.6
    _, accumulator = scores_of(batch_of(real, raw, mask), names=("patch_std",))
    assert accumulator.table is not None
    for image, score in enumerate(accumulator.table.column("masked/patch_std").tolist()):
        spread = {"fake": list[float](), "real": list[float]()}
        for patch in mask[image].nonzero().flatten().tolist():
            top, left = 8 * (patch // 4), 8 * (patch % 4)
            for name, images in (("fake", raw), ("real", real)):
                pixels = images[image, :, top : top + 8, left : left + 8].double().numpy()
                spread[name] += [pixels[channel].std() for channel in range(3)]
        assert score == pytest.approx(sum(spread["fake"]) / sum(spread["real"]), rel=1e-5)


def test_originals_are_the_measure_of_a_relative_score_and_flat_ones_have_none() -> None:
    real = torch.rand(2, 3, 32, 32)
    same = scores_of(batch_of(real, real, lower_half(2)), names=("patch_std",))[0]["scores"]
    assert [same[region]["patch_std"] for region in ("raw", "composite", "masked")] == [1.0] * 3
    real[0, :, 16:] = 0.5  # nothing to be relative to where this image is hidden
    raw = real.clone()
    raw[1, :, 16:] = 0.25
    scores = scores_of(batch_of(real, raw, lower_half(2)), names=("patch_std",))[0]["scores"]
    assert scores["masked"]["patch_std"] == 0.0  # of the second image alone
    assert scores_of(batch_of(real[:1], raw[:1], lower_half(1)), names=("patch_std",))[0]["scores"]["masked"] == {
        "patch_std": None
    }


def test_baselines_are_scored_as_composites_and_on_hidden_pixels() -> None:
    real = torch.full((1, 3, 32, 32), 0.5)
    filled = real.clone()
    filled[:, :, 16:] = 0.6
    report, _ = scores_of(batch_of(real, real, lower_half(1), baselines={"mean_color": filled}))
    found = report["baselines"]["mean_color"]
    assert list(found) == ["composite", "masked"]
    assert (found["composite"]["l1"], found["masked"]["l1"]) == (pytest.approx(0.05), pytest.approx(0.1))


class Files:
    """A data set whose images are files."""

    def file_name(self, index: int) -> str:
        return f"cats/{index}, grey.png"


@pytest.mark.parametrize("dataset", [Files(), object()])
def test_a_line_an_image_in_the_order_of_the_data_set(dataset: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    late, early = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    report, accumulator = scores_of(
        batch_of(late, late.flip(0), lower_half(2), first=7), batch_of(early, early.flip(0), lower_half(2), first=2)
    )
    assert accumulator.table is not None
    write_csv(accumulator.table, dataset, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == ["2", "3", "7", "8"]
    assert rows[0]["file"] == ("cats/2, grey.png" if isinstance(dataset, Files) else "")
    for subject in ("raw", "composite", "masked"):
        for name in ("l1", "psnr", "ssim"):
            mean = sum(float(row[f"{subject}_{name}"]) for row in rows) / 4
            assert mean == pytest.approx(report["scores"][subject][name], rel=1e-4)
    assert float(rows[0]["raw_l1"]) == pytest.approx(float((early[0] - early[1]).abs().mean()), rel=1e-4)


def test_the_best_and_the_worst_are_kept_whatever_the_batches() -> None:
    real = torch.full((30, 3, 32, 32), 0.5)
    error = torch.randperm(30, generator=torch.Generator().manual_seed(0)).float() / 100
    raw = real + error.view(30, 1, 1, 1)
    pages = []
    for size in (30, 7):
        accumulator = BestAndWorst(count=3)
        cut = range(0, 30, size)
        batches = [batch_of(real[i : i + size], raw[i : i + size], lower_half(len(real[i : i + size])), i) for i in cut]
        assert finished(accumulator, *batches) == {}
        order = error.argsort().tolist()
        assert accumulator._indices.tolist() == order[:3] + order[-3:]
        page = accumulator.page()
        assert page is not None
        pages.append(page.tobytes())
    assert pages[0] == pages[1]


def test_few_images_are_drawn_once_and_none_where_nothing_is_hidden() -> None:
    real = torch.rand(3, 3, 32, 32)
    accumulator = BestAndWorst()
    finished(accumulator, batch_of(real, real.flip(0), lower_half(3)))
    page = accumulator.page()
    assert page is not None
    assert page.height == 3 * (96 + 4) + 4 + 16
    nothing = BestAndWorst()
    finished(nothing, batch_of(real, real, torch.zeros(3, 16, dtype=torch.bool)))
    assert nothing.page() is None


def test_notes_are_next_to_their_row() -> None:
    columns = {"white": torch.ones(2, 3, 96, 96)}
    plain, noted = sheet(columns), sheet(columns, ["", "20.00 dB"])
    assert noted.height == plain.height
    right = noted.crop((plain.width, 0, noted.width, noted.height)).convert("L")
    dark = torch.tensor(list(right.tobytes())).view(right.height, right.width).lt(128).any(1).nonzero().flatten()
    assert 16 + 4 + 96 + 4 <= int(dark.min()) < int(dark.max()) < 16 + 2 * (96 + 4)


def test_reports_are_laid_together_key_by_key() -> None:
    report = {"scores": {"raw": {"l1": 1.0}}, "kind": "evaluate"}
    merge_into(report, {"scores": {"raw": {"fid": 2.0}, "originals": {"is": 3.0}}, "kind": "other"})
    assert report == {"scores": {"raw": {"l1": 1.0, "fid": 2.0}, "originals": {"is": 3.0}}, "kind": "other"}


def test_rows_come_sorted_and_each_index_once() -> None:
    indices, rows = Gather(Accelerator(cpu=True)).rows(torch.tensor([5, 1, 5, 3]), torch.tensor([[0.0], [1], [2], [3]]))
    assert indices.tolist() == [1, 3, 5]
    assert rows.flatten().tolist() == [1, 3, 0]


def test_scores_are_ordered_by_region_then_by_metric() -> None:
    real = torch.rand(1, 3, 32, 32)
    batch = batch_of(real, real, lower_half(1), baselines={"mean_color": real, "nearest_patch": real})
    _, accumulator = scores_of(batch, names=("l1", "psnr", "box_ssim"))
    assert accumulator.table is not None
    both, alone = ("l1", "psnr", "box_ssim"), ("l1", "psnr")
    regions = {"raw": both, "composite": both, "masked": alone}
    for name in ("mean_color", "nearest_patch"):
        regions |= {f"baselines/{name}/composite": both, f"baselines/{name}/masked": alone}
    assert list(accumulator.table.columns) == [
        f"{region}/{name}" for region, names in regions.items() for name in names
    ]
