"""Whole images of any size, at once and by windows."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from halves import write_halves
from perceptual_mae.transfer.pictures import best_and_worst, palette
from perceptual_mae.transfer.segmentation.data import IGNORED, image_mask_pairs
from perceptual_mae.transfer.segmentation.inference import Inference, score_images, windows
from perceptual_mae.transfer.segmentation.pictures import segmentation_page


class ByColor(nn.Module):
    """Scores of three classes by colour, and the sizes of the images that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Module()
        self.trunk.patch_size = 8
        self.shown: list[tuple[int, int]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append((images.shape[-2], images.shape[-1]))
        return images


def test_windows_cover_the_image_and_end_at_its_edges() -> None:
    # mmsegmentation's: 512 px windows, 341 px apart, over 512 x 683.
    assert list(windows((512, 683), (512, 512), (341, 341))) == [(0, 0), (0, 171)]
    assert list(windows((512, 512), (512, 512), (341, 341))) == [(0, 0)]
    tops = [top for top, left in windows((100, 10), (40, 10), (30, 10)) if left == 0]
    assert tops == [0, 30, 60]
    covered = torch.zeros(101, 57)
    for top, left in windows((101, 57), (40, 32), (27, 21)):
        covered[top : top + 40, left : left + 32] += 1
    assert bool((covered > 0).all())


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(40, 48), (20, 70), (9, 9)])
def test_windows_of_a_network_without_context_are_the_image(size: tuple[int, int], flip: bool) -> None:
    images, network = torch.rand(1, 3, *size), ByColor()
    by_windows = Inference(None, (32, 32), (21, 21), flip)(network, images, size)
    torch.testing.assert_close(by_windows, images)
    assert set(network.shown) == {(32, 32)}
    network.shown.clear()
    torch.testing.assert_close(Inference(None, None, (21, 21), flip)(network, images, size), images)
    assert all(side % 8 == 0 for shown in network.shown for side in shown)


def test_a_right_network_scores_one_at_the_masks_size(tmp_path: Path) -> None:
    data = image_mask_pairs("val", root=str(write_halves(tmp_path, val=5)))
    inference = Inference((40, 48), (32, 32), (20, 20))
    scored = score_images(ByColor(), data, inference, Accelerator(cpu=True))
    counted = sum(int((data[index][1] != IGNORED).sum()) for index in range(5))
    assert int(scored.matrix.sum()) == counted
    assert int(scored.matrix.diagonal().sum()) == counted
    assert scored.per_image == dict.fromkeys(range(5), 1.0)


def test_images_are_scaled_before_and_scores_after(tmp_path: Path) -> None:
    data = image_mask_pairs("val", root=str(write_halves(tmp_path, val=1)))
    network = ByColor()
    scored = score_images(network, data, Inference((80, 96), None, (8, 8)), Accelerator(cpu=True))
    assert network.shown == [(80, 96)]
    assert int(scored.matrix.diagonal().sum()) > 0.98 * int(scored.matrix.sum())


def test_pictures_are_of_the_best_the_worst_and_the_first() -> None:
    named = best_and_worst({0: 0.5, 1: 0.9, 2: 0.1, 3: 0.7, 4: 0.6}, 1)
    assert named == [("best 1", 1), ("worst 1", 2), ("image 1", 0)]
    assert best_and_worst({3: 0.5}, 3) == [("best 1", 3), ("image 1", 3)]
    assert best_and_worst({}, 3) == []


def test_the_first_pictures_are_of_the_same_images_for_every_encoder() -> None:
    pages = [best_and_worst(scores, 2) for scores in ({0: 0.9, 1: 0.1, 2: 0.5}, {0: 0.2, 1: 0.3, 2: 0.7})]
    assert pages[0][-2:] == pages[1][-2:] == [("image 1", 0), ("image 2", 1)]


def test_the_page_shows_prediction_next_to_the_truth(tmp_path: Path) -> None:
    data = image_mask_pairs("val", root=str(write_halves(tmp_path, val=3)))
    accelerator = Accelerator(cpu=True)
    inference, network = Inference(None, None, (8, 8)), ByColor()
    scored = score_images(network, data, inference, accelerator)
    page = segmentation_page(network, data, inference, accelerator, scored, 1)
    assert page.width > 4 * 320
    assert page.height > 3 * 240
    colors = {tuple(color) for color in palette(3).tolist()}
    shown = {color for _, color in page.getcolors(page.width * page.height)}
    assert len(colors) == 3
    assert len(colors & shown) >= 2
