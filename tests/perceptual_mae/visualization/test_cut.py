"""Sheets of pictures are cut into the images that were laid out."""

import numpy as np
import pytest
import torch
from PIL import Image

from perceptual_mae.images import Size, to_uint8
from perceptual_mae.visualization.image_grid import cut, sheet

NAMES = ("original", "masked", "a name that takes several lines above a column", "composite")


def columns(size: Size, count: int = 3) -> dict[str, torch.Tensor]:
    images = torch.rand(len(NAMES), count, 3, *size, generator=torch.Generator().manual_seed(0))
    return dict(zip(NAMES, images, strict=True))


def tensor(page: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(page).copy()).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(16, 16), (33, 40), (96, 96), (120, 97)])
@pytest.mark.parametrize("has_notes", [False, True])
def test_images_come_back_as_they_were_laid_out(size: Size, has_notes: bool) -> None:
    page = tensor(sheet(columns(size), ["note"] * 3 if has_notes else []))
    views = cut(page, NAMES, size, has_notes=has_notes)
    assert views is not None
    assert list(views) == list(NAMES)
    for name, images in columns(size).items():
        assert torch.equal(views[name], to_uint8(images)), name


@pytest.mark.parametrize(("top", "right"), [(1, 0), (0, 1), (-1, 0), (0, -5), (-400, 0)])
def test_a_picture_of_another_size_is_no_sheet(top: int, right: int) -> None:
    page = tensor(sheet(columns((16, 16))))
    other = torch.zeros(3, max(0, page.shape[1] + top), page.shape[2] + right, dtype=torch.uint8)
    assert cut(other, NAMES, (16, 16)) is None


def test_a_sheet_of_other_columns_is_none_of_these() -> None:
    page = tensor(sheet(columns((16, 16))))
    assert cut(page, NAMES[:3], (16, 16)) is None
    assert cut(page, NAMES, (16, 16), has_notes=True) is None
    assert cut(page, NAMES, (24, 32)) is None
