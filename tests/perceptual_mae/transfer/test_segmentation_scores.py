"""mIoU and accuracies from one confusion matrix."""

import pytest
import torch

from perceptual_mae.transfer.segmentation.scores import accuracies, confusion, constant_floor, ious, scores_of

GOLDEN = [[5, 1, 0], [2, 3, 1], [0, 0, 4]]


def pixels_of(matrix: list[list[int]], ignored: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and true classes (H, W) of a confusion matrix, with ignored pixels at the end."""
    pairs = [
        (row, column) for row, line in enumerate(matrix) for column, count in enumerate(line) for _ in range(count)
    ]
    pairs += [(255, place % 3) for place in range(ignored)]
    truth, predicted = torch.tensor(pairs).T
    return predicted.view(4, -1), truth.view(4, -1)


def test_the_golden_matrix_has_its_scores() -> None:
    predicted, truth = pixels_of(GOLDEN, 4)
    matrix = confusion(predicted, truth, 3, 255)
    assert matrix.tolist() == GOLDEN
    assert ious(matrix).tolist() == pytest.approx([0.625, 3 / 7, 0.8])
    assert scores_of(matrix) == pytest.approx({"miou": 0.6178571, "aacc": 0.75, "macc": 0.7777778}, abs=1e-7)


@pytest.mark.slow  # importing torchmetrics takes seconds
@pytest.mark.parametrize("absent", [None, 4])
def test_miou_is_torchmetrics_jaccard_index_over_all_images(absent: int | None) -> None:
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    draw = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (6, 20, 30), generator=draw)
    predicted = torch.where(torch.rand(truth.shape, generator=draw) < 0.5, truth, torch.randint(0, 5, truth.shape))
    if absent is not None:
        truth[truth == absent], predicted[predicted == absent] = 0, 1
    truth[torch.rand(truth.shape, generator=draw) < 0.1] = 255
    index = MulticlassJaccardIndex(5, ignore_index=255)
    right = MulticlassAccuracy(5, average="micro", ignore_index=255)
    matrix = torch.zeros(5, 5, dtype=torch.int64)
    for one, other in zip(predicted, truth, strict=True):
        index.update(one[None], other[None])
        right.update(one[None], other[None])
        matrix += confusion(one, other, 5, 255)
    scores = scores_of(matrix)
    assert scores["miou"] == pytest.approx(float(index.compute()), abs=1e-6)
    assert scores["aacc"] == pytest.approx(float(right.compute()), abs=1e-6)


def test_the_mean_of_the_images_scores_is_another_number() -> None:
    """Why counts are added: two images, one of which lacks a class."""
    parts = [torch.tensor([[8, 0], [2, 0]]), torch.tensor([[1, 1], [0, 8]])]
    means = sum(scores_of(part)["miou"] for part in parts) / 2
    assert scores_of(parts[0] + parts[1])["miou"] == pytest.approx((9 / 12 + 8 / 11) / 2)
    assert abs(means - scores_of(parts[0] + parts[1])["miou"]) > 0.1


def test_classes_that_are_nowhere_do_not_count_and_those_only_predicted_do() -> None:
    matrix = torch.tensor([[6, 2, 0], [0, 0, 0], [0, 0, 0]])
    assert ious(matrix).tolist()[:2] == pytest.approx([0.75, 0.0])
    assert bool(ious(matrix)[2].isnan())
    assert bool(accuracies(matrix)[1].isnan())
    assert scores_of(matrix)["miou"] == pytest.approx(0.375)


def test_the_floor_is_the_best_constant_answer() -> None:
    floor = constant_floor(torch.tensor([[1, 1, 0], [0, 2, 4], [1, 1, 0]]))
    assert floor == pytest.approx({"class": 1, "miou": 0.2, "aacc": 0.6, "macc": 1 / 3})
