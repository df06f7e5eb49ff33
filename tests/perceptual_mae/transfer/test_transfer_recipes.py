"""Shipped recipes of dense transfer and their sections."""

import re
from pathlib import Path

import pytest

from perceptual_mae import UserError
from perceptual_mae.config.errors import fields_of
from perceptual_mae.config.from_signature import derive, first_line, meaning_of, option_docs
from perceptual_mae.transfer.recipes import list_transfer_recipes, read_recipe
from perceptual_mae.transfer.segmentation.augmentation import SegmentationTransform
from perceptual_mae.transfer.segmentation.config import (
    AugmentSection,
    DataSection,
    EncoderSection,
    EvaluationSection,
    HeadSection,
    SegmentConfig,
)
from perceptual_mae.transfer.segmentation.data import SEGMENTATION_DATA, num_classes
from perceptual_mae.transfer.segmentation.network import Segmenter

SECTIONS = [
    SegmentConfig,
    EncoderSection,
    EvaluationSection,
    *(field.annotation for name, field in SegmentConfig.model_fields.items() if name in ("optimizer", "schedule")),
    derive(HeadSection, Segmenter),
    derive(AugmentSection, SegmentationTransform),
    *(derive(DataSection, target, kind) for kind, target in SEGMENTATION_DATA.items()),
]


def test_the_recipes_of_segmentation_are_there() -> None:
    assert [recipe.name for recipe in list_transfer_recipes("segment")] == ["ade20k", "camvid"]


@pytest.mark.parametrize("name", ["ade20k", "camvid"])
def test_a_recipe_reads_and_every_value_says_whose_it_is(name: str) -> None:
    config, read = read_recipe("segment", SegmentConfig, [name])
    assert (read, config.data.kind) == (name, name)
    (recipe,) = (each for each in list_transfer_recipes("segment") if each.name == name)
    for line in recipe.path.read_text().splitlines():
        if line.strip() and not line.lstrip().startswith("#") and not line.rstrip().endswith(":"):
            assert re.search(r"# (MAE|BEiT|mmsegmentation|mae_segmentation|ours)\b", line), line


def test_the_ade20k_recipe_is_the_published_one() -> None:
    """implus/mae_segmentation, 48.15 mIoU: AdamW 1e-4, decay .65, 160k steps of 16, slide 512/341."""
    config, _ = read_recipe("segment", SegmentConfig, ["ade20k"])
    optimizer, schedule, training = config.optimizer, config.schedule, config.training
    assert (optimizer.lr, optimizer.layer_decay, optimizer.weight_decay) == (1e-4, 0.65, 0.05)
    assert (schedule.steps, schedule.warmup_steps, training.batch_size) == (160_000, 1500, 16)
    assert (config.crop, config.stride, config.evaluation.mode) == ((512, 512), (341, 341), "slide")
    assert config.head.options()["pools"] == (1, 2, 3, 6)


def test_later_words_win_and_a_second_recipe_is_refused() -> None:
    config, _ = read_recipe("segment", SegmentConfig, ["camvid", "optimizer.lr=1", "optimizer.lr=2", "data.root=x"])
    assert (config.optimizer.lr, config.data.options()["root"]) == (2.0, "x")
    with pytest.raises(UserError, match=r"unknown recipe 'camvit'.*did you mean 'camvid'"):
        read_recipe("segment", SegmentConfig, ["camvit"])
    with pytest.raises(UserError, match="name a recipe; choose one of ade20k, camvid"):
        read_recipe("segment", SegmentConfig, ["optimizer.lr=1"])


@pytest.mark.parametrize("model", SECTIONS, ids=lambda model: model.__name__)
def test_every_key_has_a_meaning_and_a_source(model: type) -> None:
    for name, field in fields_of(model).items():
        meaning, source = meaning_of(field)
        assert meaning, name
        assert source or name == "kind", name
        assert len(meaning) <= 220


@pytest.mark.parametrize("target", [Segmenter, SegmentationTransform, *SEGMENTATION_DATA.values()])
def test_the_block_of_options_names_those_of_the_signature(target: object) -> None:
    fields = set(fields_of(derive(HeadSection, target)))  # type: ignore[arg-type]
    assert set(option_docs(target)) == fields
    assert first_line(target).rstrip(".:")


def test_a_data_set_of_ones_own_is_named_by_its_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_streets.py").write_text(
        "from perceptual_mae.transfer.segmentation.data import SegmentationData\n\n\n"
        "def streets(split: str, *, classes: int = 4) -> SegmentationData:\n"
        '    """Streets."""\n'
        "    return SegmentationData([], [f'{split} {number}' for number in range(classes)], range(classes), ())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.yaml").write_text("data: {kind: 'own_streets:streets', classes: 5}\n")
    config, name = read_recipe("segment", SegmentConfig, [str(tmp_path / "mine.yaml")])
    assert (name, config.data.build("val").classes[4], num_classes(config.data)) == ("mine", "val 4", 5)
    with pytest.raises(UserError, match=r"data\.kind: "):
        read_recipe("segment", SegmentConfig, [str(tmp_path / "mine.yaml"), "data.kind=own_streets:lanes"])
