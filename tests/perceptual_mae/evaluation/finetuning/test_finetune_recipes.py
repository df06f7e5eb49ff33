"""Recipes of fine-tuning: published constants, and what of them can be set."""

import pytest

from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.finetuning.recipes import read_recipe


@pytest.mark.parametrize(
    ("depth", "epochs", "rate", "layer_decay", "drop_path"),
    [(6, 100, 2e-3, 0.65, 0.1), (12, 100, 2e-3, 0.65, 0.1), (24, 50, 4e-3, 0.75, 0.2), (32, 50, 4e-3, 0.75, 0.3)],
)
def test_maes_constants_are_the_published_ones(
    depth: int, epochs: int, rate: float, layer_decay: float, drop_path: float
) -> None:
    recipe = read_recipe("mae", depth)
    assert (recipe.epochs, recipe.layer_decay, recipe.drop_path) == (epochs, layer_decay, drop_path)
    assert recipe.peak_rate == pytest.approx(rate)
    assert (recipe.batch_size, recipe.warmup_epochs, recipe.min_lr) == (1024, 5, 1e-6)
    assert (recipe.betas, recipe.weight_decay, recipe.smoothing) == ((0.9, 0.999), 0.05, 0.1)
    assert (recipe.mixup, recipe.cutmix, recipe.erasing) == (0.8, 1.0, 0.25)
    assert (recipe.rand_augment, recipe.pool) == ("rand-m9-mstd0.5-inc1", "mean")


def test_the_papers_constants_stand_on_maes_where_it_is_silent() -> None:
    paper, mae = read_recipe("paper", 12), read_recipe("mae", 12)
    assert (paper.peak_rate, paper.weight_decay, paper.betas, paper.warmup_epochs) == (1e-3, 0.05, (0.9, 0.95), 5)
    assert read_recipe("paper", 12, ["batch_size=64"]).peak_rate == 1e-3
    assert (paper.pool, paper.min_lr) == ("class_token", 0.0)
    assert (paper.epochs, paper.batch_size, paper.layer_decay) == (mae.epochs, mae.batch_size, mae.layer_decay)


def test_settings_are_laid_over_a_recipe() -> None:
    recipe = read_recipe("small", 6, ["epochs=4", "lr=1e-4", "pool=class_token", "crop_scale=[0.7, 1]", "mixup=0.2"])
    assert (recipe.epochs, recipe.peak_rate, recipe.base_lr, recipe.pool) == (4, 1e-4, None, "class_token")
    assert (recipe.crop_scale, recipe.mixup) == ((0.7, 1.0), 0.2)
    assert recipe.warmup_epochs == pytest.approx(0.4)  # 2 of 20, as before
    assert read_recipe("small", 6, ["epochs=4", "warmup_epochs=3"]).warmup_epochs == 3
    assert read_recipe("small", 6, ["epochs=200"]).warmup_epochs == 2
    assert read_recipe("paper", 6, ["base_lr=1e-3"]).peak_rate == pytest.approx(4e-3)


def test_from_scratch_has_nothing_to_protect_unless_reported() -> None:
    assert read_recipe("mae", 12, from_scratch=True).layer_decay == 1.0
    assert read_recipe("mae", 12, ["layer_decay=0.9"], from_scratch=True).layer_decay == 0.9
    assert read_recipe("mae", 12, from_scratch=True).epochs == 100


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lrr=1", "--set lrr: unknown key"),
        ("drop_path=1", "--set drop_path: found 1, must be a number >= 0 and < 1"),
        ("layer_decay=0", "--set layer_decay: found 0"),
        ("epochs=0", "--set epochs: found 0, must be a whole number >= 1"),
        ("pool=men", "did you mean 'mean'?"),
        ("lr=nan", "--set lr: found 'nan'"),
        ("mixup", "a setting is key=value"),
        ("warmup_epochs=30", "30 is longer than the 20 epochs"),
        ("crop_scale=[0.9, 0.5]", "must be [smallest, largest]"),
        ("rand_augment=strong", "words of timm's"),
        ("base_lr=null", "set one of them"),
    ],
)
def test_a_wrong_setting_is_reported_in_one_line(setting: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_recipe("small", 6, [setting])
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_pairs_need_an_even_batch_and_both_rates_are_one_too_many() -> None:
    with pytest.raises(UserError, match="127 is odd"):
        read_recipe("mae", 12, ["batch_size=127"])
    assert read_recipe("small", 12, ["batch_size=127"]).batch_size == 127
    with pytest.raises(UserError, match="set one of them"):
        read_recipe("mae", 12, ["lr=1e-3", "base_lr=1e-3"])
