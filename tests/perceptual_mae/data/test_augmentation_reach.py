"""What is done to training images reaches them, and no held-out image."""

from pathlib import Path

import torch

from conftest import debug_config
from perceptual_mae.config import build
from perceptual_mae.evaluation.labelled_data import open_labelled
from perceptual_mae.evaluation.reconstruction.data import open_held_out
from perceptual_mae.seeding import stream
from perceptual_mae.training.loop import pretrain

HEAVY = ["data.crop=center", "data.color_jitter=0.4", "data.grayscale=0.5", "data.flip=1"]
PLAIN = ["data.crop=center", "data.flip=0"]


def test_centre_crop_flip_and_colour_change_training_images_alone() -> None:
    heavy, plain = debug_config("mse", *HEAVY), debug_config("mse", *PLAIN)
    image = torch.randint(0, 256, (3, 40, 60), generator=stream("test"), dtype=torch.uint8)
    kept = build.build_evaluation_transform(plain.data)(image)
    assert torch.equal(build.build_train_transform(plain.data)(image, stream("test")), kept)  # the middle, nothing else
    assert not torch.equal(build.build_train_transform(heavy.data)(image, stream("test")), kept)
    for split in ("val", "test"):
        for transform in (
            open_held_out(heavy, split=split).transform,
            open_labelled(heavy, split=split).transform,
            build.build_evaluation_transform(heavy.data),
        ):
            assert torch.equal(transform(image), kept)


def test_the_share_of_a_crop_is_that_of_the_configuration() -> None:
    """In a picture of its own columns a crop's range of values is its width: the root of the share, on average."""
    image = torch.arange(200, dtype=torch.uint8).expand(3, 200, 200).contiguous()
    for share in (0.04, 0.25):
        config = debug_config("mse", f"data.crop_scale=[{share},{share}]", "data.flip=0")
        transform = build.build_train_transform(config.data)
        crops = [transform(image, stream("test", index))[0, 16].double() for index in range(50)]
        widths = torch.stack([(crop[-1] - crop[0]) / 31 * 32 for crop in crops])
        assert abs(widths.mean() / 200 - share**0.5) < 0.05 * share**0.5


def test_a_run_is_scored_on_the_same_images_whatever_it_trained_on(tmp_path: Path) -> None:
    quick = ["training.epochs=1", "training.epoch_images=16", "evaluation.limit=8"]
    heavy, plain = (
        pretrain(debug_config("mse", *options, *quick), tmp_path / name, quiet=True)
        for name, options in (("heavy", HEAVY), ("plain", PLAIN))
    )
    assert heavy["baselines"] == plain["baselines"]  # functions of held-out images and masks alone
    assert heavy["psnr"] != plain["psnr"]
