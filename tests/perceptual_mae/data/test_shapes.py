import time

import pytest
import torch

from perceptual_mae.data.shape_drawing import AREAS, KINDS, _distance, _rgb
from perceptual_mae.data.shapes import Shapes, masks_to_boxes
from perceptual_mae.errors import UserError


def images_of(shapes: Shapes, count: int) -> torch.Tensor:
    return torch.stack([shapes[i][0] for i in range(count)])


def test_an_image_depends_on_seed_split_and_index_alone() -> None:
    small, large = Shapes("train", num_images=40), Shapes("train", num_images=60)
    assert torch.equal(images_of(small, 40), images_of(large, 40))
    assert [small[i][1] for i in range(40)] == [large[i][1] for i in range(40)]
    other_seed = Shapes("train", num_images=40, seed=1)
    assert not any(torch.equal(small[i][0], other_seed[i][0]) for i in range(40))


def test_splits_share_no_image() -> None:
    splits = [Shapes(split, num_images=200) for split in ("train", "val", "test")]
    images = [bytes(split[i][0].numpy()) for split in splits for i in range(len(split))]
    assert [len(split) for split in splits] == [200, 20, 20]
    assert len(set(images)) == 240


def test_images_are_bytes_of_the_asked_size_with_labels_of_every_kind() -> None:
    shapes = Shapes("train", size=24, num_images=300)
    image, _ = shapes[0]
    assert image.shape == (3, 24, 24)
    assert image.dtype == torch.uint8
    assert {shapes[i][1] for i in range(300)} == set(range(len(KINDS)))
    assert shapes.classes == KINDS


def test_scenes_do_not_change_with_the_size() -> None:
    small, large = Shapes("train", num_images=8), Shapes("train", size=64, num_images=8)
    halved = torch.nn.functional.avg_pool2d(images_of(large, 8).float(), 2)
    assert (halved - images_of(small, 8).float()).abs().mean() < 4  # of 255; edges and stripes are filtered differently


@pytest.mark.parametrize("kind", KINDS)
def test_areas_of_the_unit_shapes_are_those_counted_on_a_grid(kind: str) -> None:
    line = (torch.arange(800) + 0.5) / 800 * 2.4 - 1.2
    x, y = torch.meshgrid(line, line, indexing="xy")
    area = (_distance(kind, x.flatten(), y.flatten()) < 0).double().mean() * 2.4**2
    assert AREAS[KINDS.index(kind)] == pytest.approx(float(area), rel=0.01)


def test_colours_are_those_of_colorsys() -> None:
    import colorsys

    hsv = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor([colorsys.hsv_to_rgb(*row) for row in hsv.tolist()])
    torch.testing.assert_close(_rgb(hsv[:, 0], hsv[:, 1], hsv[:, 2]).float(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(_rgb(hsv[:, 0] - 2, hsv[:, 1], hsv[:, 2]).float(), expected, atol=1e-5, rtol=0)


def test_annotations_hold_disjoint_visible_parts_in_tight_boxes() -> None:
    shapes = Shapes("train", size=48, num_images=60)
    counts = set()
    for i in range(60):
        visible = shapes.annotations(i)
        counts.add(len(visible.labels))
        assert visible.boxes.shape == (len(visible.labels), 4)
        assert visible.labels[0] == shapes[i][1]
        assert visible.masks.sum(0).max() <= 1
        for box, mask in zip(visible.boxes.int().tolist(), visible.masks, strict=True):
            x1, y1, x2, y2 = box
            inside = torch.zeros_like(mask)
            inside[y1:y2, x1:x2] = True
            assert not (mask & ~inside).any()
            assert mask[y1].any()
            assert mask[y2 - 1].any()
            assert mask[:, x1].any()
            assert mask[:, x2 - 1].any()
    assert counts == {1, 2, 3}


def test_annotated_pixels_are_those_the_shapes_colour() -> None:
    """A mask and the picture come from the same geometry: without its shapes a scene is smooth."""
    shapes = Shapes("train", size=64, num_images=40)
    smooth, jumps = [], []
    for i in range(40):
        image, free = shapes[i][0].float(), ~shapes.annotations(i).masks.any(0)
        steps = (image[:, :, 1:] - image[:, :, :-1]).abs().amax(0)
        edge = free[:, 1:] != free[:, :-1]
        background = torch.nn.functional.max_pool2d((~free).float()[None], 5, 1, 2)[0] == 0
        smooth.append(steps[background[:, 1:] & background[:, :-1]].mean())
        jumps.append(steps[edge].mean())
    assert torch.stack(jumps).mean() > 10 * torch.stack(smooth).mean()


def test_shapes_are_large() -> None:
    shapes = Shapes("train", num_images=100)
    covered = torch.stack([shapes.annotations(i).masks.any(0).float().mean() for i in range(100)])
    assert 0.2 < covered.mean() < 0.5


def test_boxes_of_masks_worked_by_hand() -> None:
    masks = torch.zeros(2, 5, 6, dtype=torch.bool)
    masks[0, 1:3, 2:6] = True
    masks[1, 4, 0] = True
    assert masks_to_boxes(masks).tolist() == [[2, 1, 6, 3], [0, 4, 1, 5]]


def test_large_sets_are_drawn_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = Shapes("train", num_images=20)
    monkeypatch.setattr("perceptual_mae.data.shapes.MAX_CACHED_BYTES", 0)
    drawn = Shapes("train", num_images=20)
    assert drawn._drawn is None
    assert all(torch.equal(cached[i][0], drawn[i][0]) and cached[i][1] == drawn[i][1] for i in range(20))


def test_two_thousand_images_take_little_time_and_are_drawn_once() -> None:
    started = time.process_time()
    Shapes("train", num_images=2000, seed=77)
    first = time.process_time() - started
    Shapes("train", num_images=2000, seed=77)
    again = time.process_time() - started - first
    assert first < 1.5  # 20,000 in 15 s of one core
    assert again < 0.05


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.size is 4"):
        Shapes("train", size=4)
    with pytest.raises(UserError, match=r"data\.num_images is 0"):
        Shapes("train", num_images=0)
    with pytest.raises(ValueError, match="choose from: train, val, test"):
        Shapes("training")
    with pytest.raises(IndexError):
        Shapes("train", num_images=5)[5]
