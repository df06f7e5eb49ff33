"""What holds for every shipped method: it trains with any number of images, and what it leaves is an encoder."""

from pathlib import Path

import pytest
import torch

from conftest import debug_config, debug_trainer, generator_of, random_batches, tiered
from perceptual_mae import Run, pretrain
from perceptual_mae.config.layers import list_methods
from perceptual_mae.schedules import TrainingProgress

METHODS = sorted(method.name for method in list_methods())


@pytest.mark.parametrize("method", tiered(METHODS))
def test_it_trains_with_1_2_3_and_5_images_in_odd_and_even_epochs(method: str) -> None:
    trainer = debug_trainer(method)
    for step, batch_size in enumerate((1, 2, 3, 5, 1)):
        scalars = trainer.step(random_batches(batch_size), TrainingProgress(1 + step % 2, step, step / 16))
        assert all(torch.isfinite(value) for value in scalars.values())


@pytest.mark.parametrize("method", tiered(METHODS))
def test_it_trains_with_a_decoder_of_cross_attention(method: str) -> None:
    trainer = debug_trainer(method, "generator.decoder_attention=cross")
    before = {name: value.clone() for name, value in trainer.unwrapped_generator.named_parameters()}
    for step, batch_size in enumerate((1, 3)):
        scalars = trainer.step(random_batches(batch_size), TrainingProgress(1 + step, 8 + step, 0.5))
        assert all(torch.isfinite(value) for value in scalars.values())
    assert [
        name for name, value in trainer.unwrapped_generator.named_parameters() if torch.equal(value, before[name])
    ] == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mse", "ls_gan_p", "stylegan2_ada_p"])
def test_the_encoder_of_a_run_loads_whole_into_a_plain_one_and_is_not_a_fresh_one(method: str, tmp_path: Path) -> None:
    """The authors' checkpoints of adversarial runs load nothing downstream, without a word."""
    config = debug_config(method, "training.epochs=1")
    pretrain(config, tmp_path / "run", quiet=True)
    trained = Run(tmp_path / "run").generator().encoder
    plain = generator_of(debug_config("mse", "training.seed=5")).encoder.eval()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exported = trained.export_state_dict()
    before = plain(images)
    reported = plain.load_state_dict(exported, strict=False)
    assert set(reported.missing_keys) == {"mean", "std"}  # of the data, not of the encoder
    assert not reported.unexpected_keys
    with torch.no_grad():
        torch.testing.assert_close(plain(images), trained(images), rtol=0, atol=0)
        fresh = generator_of(config).encoder.eval()(images)
        for other in (before, fresh):
            assert (trained(images) - other).abs().mean() > 0.01 * fresh.abs().mean()


@pytest.mark.parametrize("method", ["improved_mae", "mse_norm_pix", "msg_gan_p", "stylegan2_ada_p"])
def test_it_moves_every_weight_of_a_generator_with_all_options_of_its_blocks(method: str) -> None:
    options = {"layer_scale": "0.1", "drop_path": "0.3", "positions": "learned", "qkv_bias": "false"}
    options |= {"relative_positions": "true", "encoder_mask_tokens": "true"}
    trainer = debug_trainer(method, *(f"generator.{name}={value}" for name, value in options.items()))
    before = {name: value.clone() for name, value in trainer.unwrapped_generator.named_parameters()}
    for step, batch_size in enumerate((1, 3)):
        scalars = trainer.step(random_batches(batch_size), TrainingProgress(1 + step, 8 + step, 0.5))
        assert all(torch.isfinite(value) for value in scalars.values())
    after = dict(trainer.unwrapped_generator.named_parameters())
    assert [name for name, value in after.items() if torch.equal(value, before[name])] == []


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_it_trains_on_a_gpu_and_every_loss_is_finite(method: str, precision: str) -> None:
    trainer = debug_trainer(method, f"training.precision={precision}")
    assert trainer.accelerator.device.type == "cuda"
    for step in range(2):
        scalars = trainer.step(random_batches(4), TrainingProgress(1 + step, step, 0.5))
        bad = [name for name, value in scalars.items() if not torch.isfinite(value)]
        # The gradient of a single term may overflow in fp16: the balance leaves such a measurement out.
        assert [name for name in bad if precision != "fp16" or not name.startswith("gradient")] == []


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_the_host_does_not_wait_for_a_gpu_in_an_ordinary_step(method: str) -> None:
    augment = debug_config(method).augment
    acting = ["augment.initial_p=0.5"] if augment is not None and augment.kind == "ada" else []
    trainer = debug_trainer(method, "training.precision=bf16", *acting)
    batches = random_batches(4)
    for step in range(2):
        trainer.step(batches, TrainingProgress(1 + step, step, 0.5))
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(batches, TrainingProgress(2, 9, 0.5))  # no penalty, measurement or line of the record is due
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_run_of_a_gpu_is_opened_and_scored_there(tmp_path: Path) -> None:
    pretrain(debug_config("ls_gan_p", "training.epochs=1"), tmp_path / "run", quiet=True)
    reconstruction = Run(tmp_path / "run").generator()
    assert next(reconstruction.parameters()).isfinite().all()
