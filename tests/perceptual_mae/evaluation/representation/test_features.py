"""Features of a frozen encoder: the full grid, in order, in float32, each image once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from conftest import debug_config, generator_of
from perceptual_mae.data.decoding import UnreadableImageError
from perceptual_mae.data.transforms import EvaluationTransform
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.representation.features import (
    build_extractors,
    encoder_features,
    extract_features,
    fingerprint,
    layer_features,
    pixel_features,
)
from perceptual_mae.generator.encoder import Encoder
from processes import run_two_processes

TRANSFORM = EvaluationTransform((16, 16))


class Numbered:
    """Grey images whose brightness tells their index, labelled by it; those of `broken` cannot be read."""

    def __init__(self, count: int, broken: frozenset[int] = frozenset(), labelled: bool = True) -> None:
        self.count, self.broken, self.labelled = count, broken, labelled
        self.classes = tuple(str(index) for index in range(count))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in self.broken:
            raise UnreadableImageError(f"photos/{index}.jpg", "cut off")
        return torch.full((3, 16, 16), index, dtype=torch.uint8), index if self.labelled else -1


def tiny_encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder((16, 16), 3, (0.5,) * 3, (0.25,) * 3, patch_size=4, width=32, depth=3, heads=2).eval()


def brightness(images: Tensor) -> dict[str, Tensor]:
    return {"brightness": 255 * images.mean((1, 2, 3))[:, None]}


def test_a_probe_sees_the_class_token_and_every_patch() -> None:
    encoder, seen = tiny_encoder(), list[torch.Size]()
    encoder.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    extract_features(encoder_features(encoder), Numbered(5), TRANSFORM, Accelerator(cpu=True), batch_size=3)
    assert seen == [(3, 1 + 16, 32), (2, 1 + 16, 32)]


def test_features_are_the_class_token_and_the_mean_of_the_patches_after_the_final_norm() -> None:
    encoder, images = tiny_encoder(), torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        features, tokens = encoder_features(encoder)(images), encoder(images)
    torch.testing.assert_close(features["class"], tokens[:, 0])
    torch.testing.assert_close(features["mean"], sum(tokens[:, place] for place in range(1, 17)) / 16)


def test_every_block_is_mapped_and_the_last_one_is_what_the_encoder_returns() -> None:
    encoder, images = tiny_encoder(), torch.rand(6, 3, 16, 16)
    torch.nn.init.normal_(encoder.norm.weight, 1, 0.3)  # as after training
    torch.nn.init.normal_(encoder.norm.bias)
    with torch.no_grad():
        layers, last = layer_features(encoder)(images), encoder_features(encoder)(images)
    assert list(layers) == [f"{pooling}/{block}" for pooling in ("class", "mean") for block in (1, 2, 3)]
    for pooling, values in last.items():
        affine = layers[f"{pooling}/3"] * encoder.norm.weight + encoder.norm.bias
        torch.testing.assert_close(affine, values)
    assert not torch.allclose(layers["mean/1"], layers["mean/2"])


def test_extraction_leaves_the_encoder_as_it_was() -> None:
    encoder = tiny_encoder()
    before = fingerprint(encoder)
    extract_features(layer_features(encoder), Numbered(5), TRANSFORM, Accelerator(cpu=True))
    assert fingerprint(encoder) == before
    encoder.blocks[1].mlp.fc1.bias.data[3] += 1e-6
    assert fingerprint(encoder) != before


def test_pixels_are_the_images_themselves_or_their_averages_above_32() -> None:
    small, large = torch.rand(2, 3, 16, 32), torch.rand(2, 3, 64, 64)
    assert torch.equal(pixel_features(small)["pixels"], small.flatten(1))
    averaged = torch.nn.functional.avg_pool2d(large, 2)
    torch.testing.assert_close(pixel_features(large)["pixels"], averaged.flatten(1))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_features_come_in_the_order_of_the_data_set_without_unreadable_images(batch_size: int) -> None:
    features = extract_features(
        brightness, Numbered(10, frozenset({3})), TRANSFORM, Accelerator(cpu=True), batch_size=batch_size
    )
    expected = [index for index in range(10) if index != 3]
    assert features.labels.tolist() == features.indices.tolist() == expected
    assert features.named["brightness"].flatten().tolist() == pytest.approx(expected)


def test_tokens_are_not_kept_for_the_sake_of_the_one_that_is_a_feature() -> None:
    """A class token in float32 on the CPU is a view of all tokens."""
    encoder, storages = tiny_encoder(), list[Any]()

    def extract(images: Tensor) -> dict[str, Tensor]:
        tokens = encoder(images)
        storages.append(tokens.untyped_storage()._weak_ref())
        return {"class": tokens[:, 0]}

    def check(_: str, done: int, total: int) -> None:
        kept = [not torch.UntypedStorage._expired(storage) for storage in storages[:-1]]
        assert not any(kept), f"{sum(kept)} of {len(kept)} batches' tokens are alive after {done} of {total} images"

    extract_features(extract, Numbered(6), TRANSFORM, Accelerator(cpu=True), batch_size=2, on_progress=check)
    assert len(storages) == 3


def test_features_are_float32_under_autocast() -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    seen = list[torch.dtype]()
    encoder = tiny_encoder()
    encoder.blocks[0].mlp.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    features = extract_features(encoder_features(encoder), Numbered(4), TRANSFORM, accelerator)
    assert seen == [torch.bfloat16]
    assert {values.dtype for values in features.named.values()} == {torch.float32}
    assert not any(values.requires_grad for values in features.named.values())


def test_images_without_labels_are_refused() -> None:
    with pytest.raises(UserError, match="carry no label; name a labelled set with --data"):
        extract_features(brightness, Numbered(4, labelled=False), TRANSFORM, Accelerator(cpu=True))


def test_progress_is_reported_to_the_end() -> None:
    reported: list[tuple[str, int, int]] = []
    extract_features(
        brightness,
        Numbered(7),
        TRANSFORM,
        Accelerator(cpu=True),
        batch_size=3,
        name="train",
        on_progress=lambda *heard: reported.append(heard),
    )
    assert reported == [("train", 3, 7), ("train", 6, 7), ("train", 7, 7)]


TWO_PROCESSES = """
import sys
import torch
from accelerate import Accelerator
from test_features import TRANSFORM, Numbered, brightness
from perceptual_mae.evaluation.representation.features import extract_features

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
for count in (1, 7, 8, 13):
    features = extract_features(brightness, Numbered(count), TRANSFORM, accelerator, batch_size=3)
    expected = list(range(count)) if accelerator.is_main_process else []
    assert features.labels.tolist() == expected, features
    values = features.named["brightness"].flatten().round().tolist() if features.named else []
    assert values == expected, values
print("agreed", flush=True)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_count_every_image_once_and_keep_the_order(tmp_path: Path) -> None:
    script = tmp_path / "both.py"
    script.write_text(TWO_PROCESSES)
    assert run_two_processes(script).stdout.count("agreed") == 2


def test_extractors_come_in_the_order_of_the_tables_the_run_s_first() -> None:
    config = debug_config("mse")
    accelerator = Accelerator(cpu=True)
    names = [
        list(build_extractors(generator_of(config), config, accelerator, baselines=each)) for each in (False, True)
    ]
    assert names == [["encoder"], ["encoder", "random encoder", "raw pixels"]]
