"""Scale jitter, flip and the fixed crop: image, mask and boxes stay on each other."""

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from perceptual_mae.transfer.transforms import JitterCrop, fitted, photometric_distortion


def scene(height: int = 60, width: int = 80) -> tuple[tv_tensors.Image, list[Tensor]]:
    """An image that is white on a box, its mask, and the box."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, 10:40, 20:70] = 255
    mask = (image[0] > 0).to(torch.uint8)
    boxes = tv_tensors.BoundingBoxes(
        torch.tensor([[20.0, 10.0, 70.0, 40.0]]), format="XYXY", canvas_size=image.shape[1:]
    )
    return tv_tensors.Image(image), [tv_tensors.Mask(mask), boxes]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(6))
def test_masks_and_boxes_follow_the_image(seed: int) -> None:
    crop = JitterCrop((64, 48), scale=(0.5, 1.5), flip=0.5, mask_fill=255)
    image, (mask, boxes) = crop(*scene(), generator(seed))
    assert (tuple(image.shape), tuple(mask.shape)) == ((3, 64, 48), (64, 48))
    inside = mask != 255
    assert ((image[0] > 127) == (mask == 1))[inside].float().mean() > 0.97  # but for interpolated edges
    left, top, right, bottom = boxes.clamp(min=0)[0].tolist()
    rows, columns = torch.nonzero(mask == 1, as_tuple=True)
    if len(rows):
        assert abs(float(rows.min()) - top) <= 1
        assert abs(float(columns.min()) - left) <= 1
        assert abs(float(rows.max()) + 1 - min(bottom, 64)) <= 1
        assert abs(float(columns.max()) + 1 - min(right, 48)) <= 1


def test_draws_belong_to_the_generator_alone() -> None:
    crop = JitterCrop((32, 32), scale=(0.5, 2.0))
    torch.manual_seed(1)
    one, _ = crop(*scene(), generator(4))
    torch.manual_seed(2)
    other, _ = crop(*scene(), generator(4))
    assert torch.equal(one, other)


def test_what_is_missing_is_black_and_has_the_masks_fill() -> None:
    crop = JitterCrop((64, 64), scale=(0.5, 0.5), flip=0.0, mask_fill=255)
    image, (mask, _) = crop(*scene(), generator(0))
    assert bool((mask[24:] == 255).all())
    assert bool((image[:, 24:] == 0).all())
    assert not bool((mask[:24, :32] == 255).any())


def test_an_image_is_scaled_until_it_just_fits() -> None:
    assert fitted((60, 80), (512.0, 512.0)) == (384, 512)
    assert fitted((600, 400), (512, 2048), any_orientation=True) == (768, 512)  # mmsegmentation's (2048, 512)
    assert fitted((512, 4096), (512, 2048), any_orientation=True) == (256, 2048)


def test_a_crop_of_one_class_is_drawn_again() -> None:
    tries = []

    def accept(targets: list[Tensor]) -> bool:
        tries.append(tuple(targets[0].shape))
        return len(tries) == 3

    JitterCrop((16, 16), scale=(4.0, 4.0))(*scene(), generator(0), accept)
    assert tries == [(16, 16)] * 3


def test_distortion_keeps_bytes_and_depends_on_its_generator() -> None:
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=generator(9))
    changed = [photometric_distortion(image, generator(seed)) for seed in range(20)]
    assert {each.dtype for each in changed} == {torch.uint8}
    assert len({bytes(each.flatten().tolist()) for each in changed}) > 10
    assert torch.equal(changed[3], photometric_distortion(image, generator(3)))
