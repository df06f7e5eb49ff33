"""At which scale held-out images are cropped: that of MAE for photographs, their own for images of the model's size."""

import pytest
import yaml

from perceptual_mae.config.build import build_evaluation_transform
from perceptual_mae.config.parsing import load_config, parse_config, to_yaml


@pytest.mark.parametrize(
    ("layers", "resize"),
    [
        (["image_folder"], 256),
        (["imagenet"], 256),
        (["imagenet_vit_l"], 256),
        (["image_folder", "data.image_size=96", "generator.patch_size=8"], 110),
        (["image_folder", "data.image_size=64"], 73),
        (["image_folder", "data.image_size=448"], 512),
        (["image_folder", "data.image_size=64", "data.eval_resize=256"], 256),
        (["image_folder", "data.eval_resize=auto"], 256),
        (["image_folder", "data.eval_resize=null"], None),
        (["image_folder", "data.image_size=[64,128]"], None),
        (["art_model_1"], None),
        (["cifar10"], None),
        (["stl10"], None),
        (["stl10", "data.image_size=224"], None),
        (["quickstart"], None),
        (["cifar10", "data.eval_resize=auto"], None),
    ],
)
def test_photographs_are_resized_in_proportion_and_other_images_are_not(layers: list[str], resize: int | None) -> None:
    config = load_config([*layers, "mse"])
    assert config.data.eval_resize == resize
    assert build_evaluation_transform(config.data).resize == resize


@pytest.mark.parametrize(("stated", "resize"), [("null", None), ("256", 256), ("37", 37)])
def test_what_a_run_folder_states_stays_as_it_is(stated: str, resize: int | None) -> None:
    config = load_config(["image_folder", "mse", "data.image_size=32", "generator.patch_size=8"])
    text = to_yaml(config)
    assert "eval_resize: 37\n" in text
    values = yaml.safe_load(text.replace("eval_resize: 37\n", f"eval_resize: {stated}\n"))
    assert parse_config(values, {}, origin="a run").data.eval_resize == resize
