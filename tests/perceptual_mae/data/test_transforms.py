import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from perceptual_mae.data import transforms
from perceptual_mae.data.transforms import CROP_TRIES, EvaluationTransform, TrainTransform, random_crop_box
from perceptual_mae.errors import UserError


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth random image, so that resizing has something to keep."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(smooth)).permute(2, 0, 1).contiguous()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(count: int) -> list[list[float]]:
    return torch.rand(count, 2 * CROP_TRIES + 2, generator=generator()).tolist()


@pytest.mark.parametrize("size", [(32, 32), (96, 64)])
@pytest.mark.parametrize("options", [{}, {"crop": "center"}, {"color_jitter": 0.4, "grayscale": 0.2}])
def test_training_images_are_bytes_of_the_asked_size_and_repeat_with_the_generator(
    size: tuple[int, int], options: dict[str, Any]
) -> None:
    transform = TrainTransform(size, **options)
    state = torch.random.get_rng_state()
    first, second = (transform(picture(80, 120), generator(3)) for _ in range(2))
    assert first.shape == (3, *size)
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())  # nothing is drawn elsewhere


def test_crops_follow_the_distributions_of_random_resized_crop() -> None:
    """Area uniform in the scale, log ratio uniform within 3/4 to 4/3, position uniform: for a crop that always fits."""
    boxes = [random_crop_box((1000, 1000), (32, 32), (0.1, 0.5), u) for u in draws(4000)]
    top, left, height, width = torch.tensor(boxes, dtype=torch.float64).T
    area = height * width / 1e6
    log_ratio = (width / height).log()
    bound = math.log(4 / 3)
    assert area.min() >= 0.099
    assert area.max() <= 0.501
    assert area.mean() == pytest.approx(0.3, abs=0.006)  # 3 sigma: 3 * .4 / sqrt(12 * 4000) = .0055
    assert area.std() == pytest.approx(0.4 / math.sqrt(12), rel=0.05)
    assert log_ratio.abs().max() <= bound + 0.01
    assert log_ratio.mean() == pytest.approx(0, abs=0.008)
    assert log_ratio.std() == pytest.approx(2 * bound / math.sqrt(12), rel=0.05)
    for start, extent in ((top, height), (left, width)):
        assert (start >= 0).all()
        assert (start + extent <= 1000).all()
        assert (start / (1000 - extent)).mean() == pytest.approx(0.5, abs=0.014)


def test_crops_agree_with_torchvision_on_wide_images() -> None:
    """Where many tries do not fit, acceptance matters: the share of fall-backs and the mean width must agree."""
    from torchvision.transforms import RandomResizedCrop

    image = torch.empty(3, 100, 300)
    ours = torch.tensor([random_crop_box((100, 300), (32, 32), (0.2, 1.0), u) for u in draws(3000)]).double()
    torch.manual_seed(0)
    scale, ratio = [0.2, 1.0], [3 / 4, 4 / 3]
    theirs = torch.tensor([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(3000)]).double()
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 4
    assert ours[:, 2:].max() == theirs[:, 2:].max()


def test_when_nothing_fits_the_crop_is_the_largest_centred_one_within_the_ratios() -> None:
    never = [0.999] * (2 * CROP_TRIES + 2)
    assert random_crop_box((10, 100), (32, 32), (0.9, 1.0), never) == (0, 43, 10, 13)
    assert random_crop_box((100, 12), (32, 32), (0.9, 1.0), never) == (42, 0, 16, 12)


def test_a_clamped_crop_is_the_first_draw_cut_to_the_image() -> None:
    """MAE's linear probe: share 0.9 of 10x100 is 26x35 or so, whose height is cut; there is no second draw."""
    middle = [0.5, 0.5, *[0.0] * (2 * CROP_TRIES - 2), 0.0, 0.999]
    side = round(math.sqrt(0.9 * 1000))
    assert random_crop_box((10, 100), (32, 32), (0.8, 1.0), middle, clamp=True) == (0, 100 - side, 10, side)
    square = random_crop_box((100, 100), (32, 32), (0.8, 1.0), middle)
    assert random_crop_box((100, 100), (32, 32), (0.8, 1.0), middle, clamp=True) == square
    assert TrainTransform((32, 32), crop="clamped")(picture(10, 100), generator()).shape == (3, 32, 32)


def test_ratios_of_crops_centre_on_the_ratio_of_the_size() -> None:
    boxes = torch.tensor([random_crop_box((1000, 1000), (96, 48), (0.1, 0.3), u) for u in draws(1000)]).double()
    assert (boxes[:, 3] / boxes[:, 2]).log().mean() == pytest.approx(math.log(0.5), abs=0.02)


def test_flips_happen_as_often_as_asked() -> None:
    image = torch.arange(32, dtype=torch.uint8).expand(3, 32, 32)
    transform = TrainTransform((32, 32), crop="center", flip=0.25)
    flipped = [bool(transform(image, generator(i))[0, 0, 0] > 16) for i in range(2000)]
    assert np.mean(flipped) == pytest.approx(0.25, abs=0.03)  # 3 sigma


def test_without_crop_flip_and_colour_an_image_comes_back_as_it_is() -> None:
    image = picture(32, 32)
    assert torch.equal(TrainTransform((32, 32), crop="center", flip=0)(image, generator()), image)


def test_bicubic_resizing_is_close_to_pillows() -> None:
    image = picture(120, 160)
    transform = TrainTransform((32, 32), flip=0)
    ours = transform(image, generator(5))
    u = torch.rand(2 * CROP_TRIES + 4, generator=generator(5)).tolist()
    top, left, height, width = random_crop_box((120, 160), (32, 32), (0.2, 1.0), u)
    box = (left, top, left + width, top + height)
    whole = Image.fromarray(image.permute(1, 2, 0).numpy())
    theirs = np.array(whole.crop(box).resize((32, 32), Image.Resampling.BICUBIC))
    difference = (ours.permute(1, 2, 0).int() - torch.from_numpy(theirs).int()).abs()
    assert difference.max() <= 2  # rounding of bytes between the two passes
    assert difference.float().mean() < 0.3


def test_grey_images_have_equal_channels_and_jitter_changes_colours() -> None:
    image = picture(32, 32)
    grey = TrainTransform((32, 32), crop="center", flip=0, grayscale=1.0)(image, generator())
    assert torch.equal(grey[0], grey[1])
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert ((image * weights).sum(0) - grey[0]).abs().max() <= 1.5
    jitter = TrainTransform((32, 32), crop="center", flip=0, color_jitter=0.4)
    changed = [(jitter(image, generator(i)).float() - image.float()).abs().mean() for i in range(20)]
    assert min(changed) > 0.5
    assert len({float(change) for change in changed}) == 20


@pytest.mark.parametrize(
    ("image_size", "size", "resize"),
    [((60, 120), (32, 32), None), ((120, 60), (32, 32), 40), ((50, 70), (96, 64), None), ((64, 200), (32, 64), 36)],
)
def test_evaluation_keeps_the_aspect_ratio(
    image_size: tuple[int, int], size: tuple[int, int], resize: int | None
) -> None:
    """A centred disc stays a disc, of the size that the one scale gives it."""
    height, width = image_size
    y = torch.arange(height)[:, None] + 0.5 - height / 2
    x = torch.arange(width)[None] + 0.5 - width / 2
    radius = 0.4 * min(image_size)
    disc = ((x**2 + y**2 < radius**2) * 255).to(torch.uint8).expand(3, -1, -1).contiguous()
    out = EvaluationTransform(size, resize)(disc)
    assert out.shape == (3, *size)
    cover = max(size[0] / height, size[1] / width)
    scale = cover if resize is None else max(cover, resize / min(image_size))
    lit = out[0] > 127
    diameters = int(lit[size[0] // 2].sum()), int(lit[:, size[1] // 2].sum())
    expected = [min(2 * radius * scale, size[1]), min(2 * radius * scale, size[0])]
    assert diameters == pytest.approx(expected, abs=2)


def test_evaluation_leaves_a_fitting_image_as_it_is() -> None:
    image = picture(32, 48)
    assert torch.equal(EvaluationTransform((32, 48))(image), image)
    assert torch.equal(EvaluationTransform((32, 32), 32)(image), image[:, :, 8:40])


def test_evaluation_resizes_the_shorter_side_as_pillow_does() -> None:
    image = picture(100, 150)
    ours = EvaluationTransform((32, 32), 40)(image)
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((60, 40), Image.Resampling.BICUBIC)
    theirs = torch.from_numpy(np.array(resized.crop((14, 4, 46, 36)))).permute(2, 0, 1)
    assert (ours.int() - theirs.int()).abs().max() <= 2


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: EvaluationTransform((64, 64), 32), "data.eval_resize"),
        (lambda: TrainTransform((8, 8), crop_scale=(0.0, 1.0)), "data.crop_scale"),
        (lambda: TrainTransform((8, 8), crop_scale=(0.9, 0.2)), "data.crop_scale"),
        (lambda: TrainTransform((8, 8), crop="random"), "data.crop "),  # type: ignore[arg-type]
        (lambda: TrainTransform((8, 8), flip=1.5), "data.flip"),
    ],
)
def test_settings_without_sense_are_refused(make: Callable[[], object], key: str) -> None:
    with pytest.raises(UserError, match=key):
        make()


def test_jitter_draws_factors_within_its_strength_and_hue_within_a_quarter_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    amounts: dict[str, list[float]] = {}
    for name in ("brightness", "contrast", "saturation", "hue"):

        def record(image: Tensor, amount: float, name: str = name) -> Tensor:
            amounts.setdefault(name, []).append(amount)
            return image

        monkeypatch.setattr(transforms.F, f"adjust_{name}", record)
    jitter = TrainTransform((8, 8), crop="center", flip=0, color_jitter=0.4)
    for seed in range(1000):
        jitter(picture(8, 8), generator(seed))
    for name, low, high in (
        *((name, 0.6, 1.4) for name in ("brightness", "contrast", "saturation")),
        ("hue", -0.1, 0.1),
    ):
        drawn = np.array(amounts[name])
        assert len(drawn) == 1000, name
        assert low <= drawn.min() < low + 0.01 * (high - low), name
        assert high - 0.01 * (high - low) < drawn.max() <= high, name
        assert drawn.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.05), name
    correlations = np.corrcoef([amounts[name] for name in amounts]) - np.eye(4)
    assert np.abs(correlations).max() < 0.13  # 4 sigma


def test_crop_flip_and_grey_are_drawn_independently() -> None:
    """From a picture of its own coordinates: where a crop begins, how large it is, whether it is flipped, and grey."""
    ramp = torch.arange(128, dtype=torch.uint8)
    image = torch.stack([ramp.expand(128, 128), ramp[:, None].expand(128, 128), torch.full((128, 128), 200)])
    image = image.to(torch.uint8)
    transform = TrainTransform((16, 16), crop_scale=(0.1, 0.3), flip=0.5, grayscale=0.5)
    plain = TrainTransform((16, 16), crop_scale=(0.1, 0.3), flip=0, grayscale=0)
    draws = []
    for seed in range(1000):
        cropped, drawn = plain(image, generator(seed)).double(), transform(image, generator(seed)).double()
        grey = bool((drawn[0] == drawn[2]).all())
        flipped = bool(drawn[0, 8, 0] > drawn[0, 8, -1])
        extent = cropped[0, 8, -1] - cropped[0, 8, 0]
        draws.append([grey, flipped, cropped[0, 0, 0].item(), cropped[1, 0, 0].item(), extent.item()])
    columns = np.array(draws, dtype=float).T
    assert columns[0].mean() == pytest.approx(0.5, abs=0.064)  # 4 sigma, here and below
    assert columns[1].mean() == pytest.approx(0.5, abs=0.064)
    correlations = np.corrcoef(columns)
    assert np.abs(correlations[:2, 2:]).max() < 0.13
    assert abs(correlations[0, 1]) < 0.13
