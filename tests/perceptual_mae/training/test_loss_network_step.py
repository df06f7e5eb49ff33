"""Loss networks in a step: shared, seen through only when read, frozen, and a way for gradient to the generator."""

import builtins
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from conftest import PERCEPTUAL, debug_config, debug_trainer, inputs_of, random_batches, real_levels, slow, term_inputs
from perceptual_mae import Run
from perceptual_mae.cli.pretrain import describe
from perceptual_mae.config import build
from perceptual_mae.errors import UserError
from perceptual_mae.run import checkpoint
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training import trainer_state
from perceptual_mae.training.loop import pretrain

ODD, EVEN = TrainingProgress(1, 3, 0.2), TrainingProgress(2, 9, 0.6)
KINDS = {
    "vgg16": "{kind: vgg16, weights: random, layers: [relu1_2, relu2_2]}",
    "dvae": "{kind: dvae, weights: random, width: 16}",
    "lpips": "{kind: lpips, weights: random, net: squeeze}",
    "named": "{kind: named, weights: random, name: shufflenet_v2_x0_5, layers: [stage2, stage3]}",
    "snapshot": "{kind: snapshot, every: 2}",
}


def through(network: str, *terms: str) -> list[str]:
    return [f"losses.{term}.network={network}" for term in terms or PERCEPTUAL]


def passes_of(network: nn.Module) -> list[bool]:
    """A list that grows with every pass: whether its images carry a gradient."""
    passes: list[bool] = []
    network.register_forward_pre_hook(
        lambda _, seen: passes.append((seen[0] if isinstance(seen[0], Tensor) else seen[0][0]).requires_grad)
    )
    return passes


def only(networks: nn.ModuleDict) -> nn.Module:
    (network,) = networks.values()
    return network


@pytest.mark.parametrize("order", ["lean", slow("sequential")])
@pytest.mark.parametrize("kind", KINDS)
def test_terms_of_the_same_settings_share_one_network_and_one_pass_each_over_real_and_fake(
    kind: str, order: str
) -> None:
    trainer = debug_trainer("ls_gan_p", *through(KINDS[kind]), f"training.order={order}")
    assert {trainer.objective.lines[term].network for term in PERCEPTUAL} == {kind}
    networks = trainer.networks.copies if kind == "snapshot" else trainer.networks.fixed
    passes = passes_of(only(networks))
    trainer.step(random_batches(4), ODD)
    assert passes == []  # no active term reads features
    trainer.step(random_batches(4), EVEN)
    assert sorted(passes) == [False, True]


def test_terms_of_other_settings_have_networks_of_their_own() -> None:
    shallow = "{kind: vgg16, weights: random, layers: [relu2_2]}"
    trainer = debug_trainer(
        "ls_gan_p", *through(shallow, "feature_matching"), *through(KINDS["vgg16"], "style"), "discriminator.norm=none"
    )
    assert list(trainer.networks.fixed) == ["vgg16", "vgg16_2"]
    inputs, _ = term_inputs(trainer, EVEN)
    counts = {name: len(inputs.features("fake_features", trainer.objective.lines[name].network)) for name in PERCEPTUAL}
    assert counts == {"feature_matching": 1, "style": 2}
    mixed = debug_trainer("ls_gan_p", *through(KINDS["snapshot"], "style"))
    assert [mixed.objective.lines[name].network for name in PERCEPTUAL] == ["discriminator", "snapshot"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["feature_matching", slow("style")])
def test_a_term_reaches_every_tensor_of_the_generator_through_each_network(name: str, kind: str) -> None:
    trainer = debug_trainer("ls_gan_p", *through(KINDS[kind]), "generator.skips=true")
    trainer.objective.lines = {name: trainer.objective.lines[name]}
    inputs, _ = term_inputs(trainer, EVEN)
    trainer.objective(inputs, EVEN).total.backward()
    gradients = {key: value.grad for key, value in trainer.unwrapped_generator.named_parameters()}
    assert [key for key, gradient in gradients.items() if gradient is None or not gradient.any()] == []


def test_a_snapshot_of_a_pyramids_discriminator_reaches_every_head() -> None:
    trainer = debug_trainer("msg_gan_p", *through(KINDS["snapshot"]))
    trainer.objective.lines = {"feature_matching": trainer.objective.lines["feature_matching"]}
    inputs, _ = term_inputs(trainer, EVEN)
    trainer.objective(inputs, EVEN).total.backward()
    assert all(value.grad is not None and value.grad.any() for value in trainer.unwrapped_generator.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_the_original_are_never_differentiated(kind: str) -> None:
    trainer = debug_trainer("ls_gan_p", *through(KINDS[kind]))
    (batch,) = trainer.prepare(random_batches(4), EVEN)
    batch.images.requires_grad_()  # even where somebody else wants its gradient
    inputs = inputs_of(trainer, trainer.generator(batch.images, batch.mask), batch, EVEN)
    assert all(feature.requires_grad for feature in inputs.features("fake_features", kind))
    assert not any(feature.requires_grad for feature in inputs.features("real_features", kind))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "snapshot"])
def test_steps_leave_a_fixed_network_bit_identical_and_without_gradient(kind: str) -> None:
    trainer = debug_trainer("l1", "losses.style={weight: 1.0, network: " + KINDS[kind] + "}")
    network = only(trainer.networks.fixed)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    generator = trainer.unwrapped_generator.decoder.pred.weight.clone()
    for step in range(1, 4):
        trainer.step(random_batches(4, seed=step), TrainingProgress(1, step, 0.2))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module.training for module in network.modules())
    assert not torch.equal(generator, trainer.unwrapped_generator.decoder.pred.weight)


def test_fixed_networks_see_clean_images_and_snapshots_what_the_discriminator_sees() -> None:
    trainer = debug_trainer(
        "stylegan2_ada_p",
        "augment.initial_p=0.8",
        *through(KINDS["vgg16"], "feature_matching"),
        *through(KINDS["snapshot"], "style"),
    )
    inputs, batch = term_inputs(trainer, EVEN)
    clean = only(trainer.networks.fixed)(batch.images)
    assert all(torch.equal(*pair) for pair in zip(inputs.features("real_features", "vgg16"), clean, strict=True))
    live = inputs.features("real_features")
    assert all(torch.equal(*pair) for pair in zip(inputs.features("real_features", "snapshot"), live, strict=True))
    on_clean = only(trainer.networks.copies)(real_levels(trainer, batch.images))
    assert not torch.allclose(on_clean[0], live[0])


@pytest.mark.slow
def test_the_authors_snapshot_is_live_in_epochs_1_6_and_11_and_stale_in_between() -> None:
    trainer = debug_trainer("official_code", "training.order=lean")
    live_in = set()
    for epoch in range(1, 12):
        progress = TrainingProgress(epoch, 8 * epoch, 0.1)
        trainer.networks.follow(trainer.unwrapped_discriminator, epoch)
        inputs, _ = term_inputs(trainer, progress)
        live = inputs.features("fake_features"), inputs.features("fake_features", "snapshot")
        if all(torch.equal(*pair) for pair in zip(*live, strict=True)):
            live_in.add(epoch)
        trainer.step(random_batches(4, seed=epoch), progress)
    assert live_in == {1, 6, 11}


def test_under_bf16_the_snapshot_runs_in_the_discriminators_precision() -> None:
    trainer = debug_trainer("official_code", "training.precision=bf16")
    trainer.networks.follow(trainer.unwrapped_discriminator, 1)
    inputs, _ = term_inputs(trainer, EVEN)
    for field in ("fake_features", "real_features"):
        for copied, live in zip(inputs.features(field, "snapshot"), inputs.features(field), strict=True):
            assert torch.equal(copied.float(), live)
    full = debug_trainer("official_code")
    assert not torch.equal(
        term_inputs(full, EVEN)[0].features("real_features")[-1], inputs.features("real_features")[-1]
    )


def test_a_step_lets_the_snapshot_follow_before_the_discriminator_moves() -> None:
    for order in ("lean", "sequential"):
        trainer = debug_trainer("official_code", f"training.order={order}")
        trainer.step(random_batches(4), TrainingProgress(1, 1, 0.1))
        before = [value.clone() for value in trainer.unwrapped_discriminator.parameters()]
        trainer.step(random_batches(4), TrainingProgress(1, 2, 0.1))
        copied = list(only(trainer.networks.copies).parameters())
        assert all(torch.equal(*pair) for pair in zip(before, copied, strict=True))
        assert not any(
            torch.equal(*pair) for pair in zip(trainer.unwrapped_discriminator.parameters(), copied, strict=True)
        )


@pytest.mark.slow
def test_a_resumed_snapshot_is_the_one_that_was_saved(tmp_path: Path) -> None:
    overrides = ("official_code", "training.order=lean")
    unbroken, first = debug_trainer(*overrides), debug_trainer(*overrides)
    steps = [
        (seed, TrainingProgress(1 + seed // 2, seed, 0.1)) for seed in range(6)
    ]  # epoch 1 is followed, 2 and 3 are not
    for seed, progress in steps:
        unbroken.step(random_batches(4, seed=seed), progress)
    for seed, progress in steps[:3]:
        first.step(random_batches(4, seed=seed), progress)
    tensors, metadata = trainer_state.state_dict(first, first.accelerator)
    saved = checkpoint.save(tmp_path, 3, tensors, metadata)
    resumed = debug_trainer(*overrides, "training.seed=1")  # other weights, until the checkpoint is read
    trainer_state.load_state_dict(resumed, resumed.accelerator, saved)
    resumed.draw_masks = first.draw_masks
    for seed, progress in steps[3:]:
        resumed.step(random_batches(4, seed=seed), progress)
    whole, parts = (
        nn.ModuleList([trainer.unwrapped_generator, trainer.networks.copies]).state_dict()
        for trainer in (unbroken, resumed)
    )
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    (saved / "loss_networks.safetensors").unlink()
    with pytest.raises(UserError, match="holds no"):
        trainer_state.load_state_dict(resumed, resumed.accelerator, saved)


def test_features_of_a_file_train_and_its_path_is_all_a_run_keeps(tmp_path: Path) -> None:
    path = tmp_path / "squeezenet.pt"
    torch.save(models.squeezenet1_0(weights=None).state_dict(), path)
    network = f"{{kind: named, name: squeezenet1_0, layers: [features.1, features.4], weights: {path}}}"
    config = debug_config("l1", f"losses.style={{weight: 1.0, network: {network}}}", "training.epochs=1")
    pretrain(config, tmp_path / "run", quiet=True)
    text = (tmp_path / "run" / "log.txt").read_text()
    assert "random weights" not in text
    path.unlink()  # a run opens without it, and only training on needs it
    assert Run(tmp_path / "run").summary()["steps"] == 4
    with pytest.raises(UserError, match=r"losses.style.network: the weights of squeezenet1_0: .* does not exist"):
        pretrain(config, tmp_path / "run", quiet=True)


def test_random_weights_are_reported(tmp_path: Path) -> None:
    network = "losses.style={weight: 1.0, network: " + KINDS["lpips"] + "}"
    pretrain(debug_config("l1", network, "training.epochs=1"), tmp_path / "run", quiet=True)
    assert "WARNING the loss network lpips has random weights" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("weights: absent.pt", r"absent.pt does not exist; set `weights` to a file of vgg16"),
        ("weights: there.pt, sha256: '00000000'", r"there.pt has SHA-256 .*, not 00000000"),
        ("weights: there.pt", r"there.pt are those of another network, tensors 20 missing \(first: layers.0.weight\)"),
    ],
)
def test_a_file_that_does_not_do_is_reported_in_one_line_with_its_key(
    options: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.ones(1)}, "there.pt")
    config = debug_config("l1", f"losses.style={{weight: 1.0, network: {{kind: vgg16, {options}}}}}")
    with pytest.raises(UserError, match=rf"^losses.style.network: .*{message}") as caught:
        build.build_loss_networks(config.losses, config.data.image, None, config.training.seed)
    assert "\n" not in str(caught.value)


def test_a_library_that_is_not_installed_is_reported_when_the_network_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_timm(name: str, *rest: object) -> object:
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    network = "{kind: named, library: timm, name: test_resnet, layers: [layer1], weights: random}"
    config = debug_config("l1", f"losses.style={{weight: 1.0, network: {network}}}")
    with pytest.raises(UserError, match=r"losses.style.network: No module named 'timm'; install it: pip install timm"):
        build.build_loss_networks(config.losses, config.data.image, None, config.training.seed)


def test_random_weights_follow_the_runs_seed_and_leave_the_global_state_alone() -> None:
    networks = []
    for seed in (0, 0, 1):
        torch.manual_seed(7)
        config = debug_config("vgg_p", f"training.seed={seed}")
        networks.append(
            only(build.build_loss_networks(config.losses, config.data.image, None, config.training.seed).fixed)
        )
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(7)))
    weights = [next(network.parameters()) for network in networks]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_dry_run_counts_loss_networks() -> None:
    text = describe(debug_config("vgg_p"), Path("runs/x"))
    assert "loss network vgg16: 7,635,264 fixed parameters" in text
    assert "loss network snapshot: " in describe(debug_config("official_code"), Path("runs/x"))


def test_a_network_of_ones_own_is_read_built_and_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_eyes.py").write_text(
        "from torch import nn\n"
        "class Edges(nn.Module):\n"
        "    def __init__(self, size: tuple[int, int], channels: int, *, width: int = 8) -> None:\n"
        "        super().__init__()\n"
        "        self.layers = nn.Sequential(nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width))\n"
        "    def forward(self, images):\n"
        "        return (self.layers(images),)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    trainer = debug_trainer("l1", "losses.style={weight: 1.0, network: {kind: 'my_eyes:Edges', width: 4}}")
    network = trainer.networks.fixed["my_eyes_Edges"]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert float(trainer.step(random_batches(4), ODD)["raw/style"]) > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    (tmp_path / "no_eyes.py").write_text("def blind(size: tuple[int, int], channels: int): return None\n")
    with pytest.raises(UserError, match=r"losses.style.network.kind: no_eyes:blind is no network"):
        debug_trainer("l1", "losses.style={weight: 1.0, network: 'no_eyes:blind'}")
    with pytest.raises(UserError, match=r"unknown option of my_eyes:Edges"):
        debug_config("l1", "losses.style={weight: 1.0, network: {kind: 'my_eyes:Edges', wdth: 4}}")


@pytest.mark.parametrize("method", ["dvae_p", "vgg_p"])
def test_methods_of_fixed_networks_train_without_a_discriminator_in_every_epoch(method: str) -> None:
    trainer = debug_trainer(method)
    assert trainer.adversary is None
    for progress in (ODD, EVEN):
        scalars = trainer.step(random_batches(4), progress)
        assert trainer.objective.active(progress) == ["l1", *PERCEPTUAL]
        assert all(torch.isfinite(value) for value in scalars.values())
