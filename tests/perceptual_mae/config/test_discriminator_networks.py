"""A discriminator on a frozen network, from its configuration to its steps and checkpoints."""

from pathlib import Path

import pytest
import torch
import yaml

from conftest import debug_config, debug_trainer, random_batches
from discriminators.projected import Projected
from perceptual_mae.config.annotated import to_annotated_yaml
from perceptual_mae.config.build import build_discriminator
from perceptual_mae.config.parsing import json_schema, parse_config, to_yaml
from perceptual_mae.errors import UserError
from perceptual_mae.loss_networks.library import named
from perceptual_mae.report.cost import parameters
from perceptual_mae.run import checkpoint
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training import trainer_state

NETWORK = "{{kind: named, name: squeezenet1_0, layers: [features.4, features.7], weights: {weights}}}"
SQUEEZENET = "imagenet_squeezenet1_0_fp16.safetensors"


def projected(weights: object = "random", more: str = "") -> str:
    return f"discriminator={{kind: projected, width: 8, network: {NETWORK.format(weights=weights)}{more}}}"


@pytest.mark.slow
def test_the_network_is_a_section_that_is_read_written_and_read_back() -> None:
    config = debug_config("ls_gan_p", projected())
    assert config.discriminator is not None
    network = config.discriminator.options()["network"]
    assert (network.kind, network.options()["layers"]) == ("named", ("features.4", "features.7"))
    for text in (to_yaml(config), to_annotated_yaml(config)):
        assert parse_config(yaml.safe_load(text)) == config
    assert "'library'" in str(json_schema()["$defs"]["DiscriminatorSection"]["properties"]["network"])


@pytest.mark.slow
def test_the_kind_of_network_is_named_unless_it_is_said() -> None:
    assert debug_config("ls_gan_p", projected().replace("kind: named, ", "")) == debug_config("ls_gan_p", projected())


@pytest.mark.parametrize(
    ("discriminator", "message"),
    [
        ("{kind: projected}", "discriminator.network: is missing, must be a mapping"),
        (
            "{kind: projected, network: {kind: snapshot}}",
            "network.kind: unknown frozen network 'snapshot'; choose from: vgg16,",
        ),
        ("{kind: projected, network: {kind: vgg16, weigths: random}}", "did you mean 'weights'?"),
        ("{kind: projected, network: {kind: vgg16}}", "vgg16 has no weights; set `weights`"),
        (projected("random", ", norm: batch").partition("=")[2], "discriminator.norm: found 'batch', must be one of"),
        ("{kind: projected, width: 0, network: {kind: vgg16, weights: random}}", "width of at least 1"),
        ("{kind: ls_gan, network: {kind: vgg16, weights: random}}", "discriminator.network: unknown option of ls_gan"),
    ],
)
def test_a_mistake_is_a_line_that_names_its_key(discriminator: str, message: str) -> None:
    with pytest.raises(UserError, match="discriminator") as refused:
        debug_config("ls_gan_p", f"discriminator={discriminator}")
    assert message in str(refused.value)


@pytest.mark.slow
def test_the_configuration_is_read_and_its_cost_counted_without_the_file(tmp_path: Path) -> None:
    config = debug_config("ls_gan_p", projected(tmp_path / "none.safetensors"))
    _, millions = parameters(config)
    heads = 2 * (8 * 8 * 9 + 8 + 8 + 1) + (128 + 256) * 8 + 2 * 8
    assert millions == pytest.approx(heads / 1e6)
    with pytest.raises(UserError, match=r"none\.safetensors does not exist"):
        build_discriminator(config.discriminator, config.data.image, 0)


@pytest.mark.slow
def test_the_same_seed_builds_the_same_heads_and_random_network() -> None:
    config = debug_config("ls_gan_p", projected())
    first, again, other = (build_discriminator(config.discriminator, config.data.image, seed) for seed in (1, 1, 2))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        logits = [each.eval()((images,)).logits for each in (first, again, other)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


@pytest.mark.slow
@pytest.mark.parametrize("order", ["lean", "sequential"])
def test_steps_train_the_heads_alone_and_a_run_goes_on_from_its_checkpoint(order: str, tmp_path: Path) -> None:
    words = ("ls_gan_p", projected(), f"training.order={order}", "penalties={r1: {every: 1}}")
    unbroken, resumed = debug_trainer(*words), debug_trainer(*words)
    discriminator = unbroken.unwrapped_discriminator
    assert isinstance(discriminator, Projected)
    frozen = {name: value.clone() for name, value in discriminator.network.state_dict().items()}
    before = {name: value.detach().clone() for name, value in discriminator.named_parameters()}
    for step in range(2):
        scalars = unbroken.step(random_batches(4, seed=step), TrainingProgress(2, 9 + step, 0.6))
        assert all(torch.isfinite(value) for value in scalars.values())
    assert all(not torch.equal(value, before[name]) for name, value in discriminator.named_parameters())
    assert all(torch.equal(value, frozen[name]) for name, value in discriminator.network.state_dict().items())
    tensors, metadata = trainer_state.state_dict(unbroken, unbroken.accelerator)
    assert all(name.startswith("heads.") for name in tensors["discriminator"])
    checkpoint.save(tmp_path, 2, tensors, {"step": 2, **metadata})
    trainer_state.load_state_dict(resumed, resumed.accelerator, tmp_path / "step_00000002")
    outcomes = [each.step(random_batches(4, seed=3), TrainingProgress(2, 11, 0.7)) for each in (unbroken, resumed)]
    assert all(torch.equal(value, outcomes[1][name]) for name, value in outcomes[0].items())


@pytest.mark.data
def test_a_real_network_is_read_from_its_file_and_its_heads_learn(shared_data: Path) -> None:
    path = shared_data / "nets" / SQUEEZENET
    trainer = debug_trainer("ls_gan_p", projected(path))
    discriminator = trainer.unwrapped_discriminator
    alone = named((32, 32), 3, name="squeezenet1_0", layers=("features.4", "features.7"), weights=str(path))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for own, theirs in zip(discriminator.network(images), alone(images), strict=True):
            torch.testing.assert_close(own, theirs)
        assert discriminator((images,)).logits.abs().max() < 30
    losses = [
        trainer.step(random_batches(8), TrainingProgress(1, 9 + step, 0.5))["discriminator/loss"].item()
        for step in range(20)
    ]
    assert losses[-1] < losses[0]
