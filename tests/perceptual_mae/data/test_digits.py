from collections import Counter

import pytest
import torch
from sklearn.datasets import load_digits

from perceptual_mae.data.digits import Digits
from perceptual_mae.errors import UserError


def test_splits_part_the_digits_without_overlap_and_keep_the_classes_even() -> None:
    splits = {split: Digits(split, size=8) for split in ("train", "val", "test")}
    images = [bytes(digits[i][0].numpy()) for digits in splits.values() for i in range(len(digits))]
    source = load_digits().images
    assert len(images) == len(source) == 1797
    expected = Counter(bytes((image * 255 / 16 + 0.5).astype("uint8").repeat(3).tobytes()) for image in source)
    assert sum(expected.values()) == 1797
    assert len({bytes(image) for image in images}) >= 1795  # the source has next to no twins
    for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        counts = Counter(splits[split][i][1] for i in range(len(splits[split])))
        assert set(counts) == set(range(10))
        assert all(abs(count - share * 180) < 6 for count in counts.values())


def test_digits_are_grey_rgb_bytes_of_the_asked_size() -> None:
    digits = Digits("val")
    image, label = digits[0]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.uint8
    assert torch.equal(image[0], image[2])
    assert 0 <= label <= 9
    assert image.max() > 200
    assert digits.classes == tuple("0123456789")


def test_the_split_is_the_same_each_time() -> None:
    first, second = Digits("test"), Digits("test")
    assert all(torch.equal(first[i][0], second[i][0]) for i in range(len(first)))


def test_enlarging_keeps_what_the_digit_shows() -> None:
    small, large = Digits("val", size=8), Digits("val")
    for i in range(20):
        pooled = torch.nn.functional.avg_pool2d(large[i][0].float(), 4)
        assert (pooled - small[i][0].float()).abs().mean() < 20
        assert small[i][1] == large[i][1]


def test_sizes_below_the_source_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.size"):
        Digits("train", size=4)
