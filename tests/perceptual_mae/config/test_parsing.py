"""The run's configuration: defaults, reports, round trips, and parts that do not fit each other."""

import re

import pytest
import yaml

from perceptual_mae.config.build import generator_adam
from perceptual_mae.config.own_kinds import EVERYTHING
from perceptual_mae.config.parsing import RunConfig, json_schema, load_config, parse_config, to_yaml
from perceptual_mae.errors import UserError
from perceptual_mae.schedules import Balanced, Every, FromEpoch, Ramp


def report(*arguments: str) -> list[str]:
    """The lines of the report that the quick start with these overrides is refused with."""
    with pytest.raises(UserError) as caught:
        load_config(["quickstart", *arguments])
    return str(caught.value).splitlines()


def test_defaults_are_ls_gan_p_at_the_papers_size():
    config = load_config([])
    assert config == parse_config({}) == load_config(["ls_gan_p"])
    assert config.data.size == (224, 224)
    assert (config.generator.size, config.generator.norm_pix) == ("base", False)
    assert config.masking.ratio == 0.75
    assert (config.training.epochs, config.training.batch_size) == (300, 16)
    assert generator_adam(config.optimizer, 16)[0] == 1.5e-4
    assert (config.optimizer.betas, config.optimizer.weight_decay) == ((0.9, 0.95), 0.05)
    assert config.schedule.warmup_epochs == 40
    losses = dict(config.losses.items())
    assert {name: term.weight for name, term in losses.items()} == {
        "l1": 1.0,
        "feature_matching": 0.05,
        "style": 40.0,
        "adversarial": Balanced(balanced=0.1, cap=1.0),
    }
    assert [name for name, term in losses.items() if term.when == "even_epochs"] == ["feature_matching", "style"]
    assert losses["adversarial"].options()["kind"] == "least_squares"


def test_the_quick_start_is_forty_thousand_images_of_ls_gan_p():
    config = load_config(["quickstart"])
    assert config.training.epochs * (config.training.epoch_images or 0) == 40_000
    assert config == load_config(["quickstart", "ls_gan_p"])
    assert config.data.options()["size"] == 32


def test_small_recipes_have_the_stated_sizes():
    fields = ("patch_size", "width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads")
    sizes = {"cifar10": (4, 192, 6, 3, 128, 4, 4), "stl10": (8, 192, 8, 6, 128, 5, 4)}
    sizes |= {"cifar10_kth_small": (4, 128, 3, 4, 64, 1, 4), "cifar10_kth_medium": (4, 256, 4, 4, 128, 2, 4)}
    for recipe, size in sizes.items():
        options = load_config([recipe]).generator.options()
        assert tuple(options[field] for field in fields) == size


def test_forms_of_weights_and_phases_survive_the_file():
    config = load_config(
        [
            "quickstart",
            "losses.adversarial.weight={from: 0, to: 0.5, over: 0.25}",
            "losses.style.when={from_epoch: 3}",
            "losses.feature_matching.when={every: 2}",
            "masking.ratio={from: 0.5, to: 0.75}",
            "optimizer.discriminator.betas=[0, 0.99]",
            "data.image_size=[32, 64]",
            "tracking.trackers=[tensorboard]",
            "tracking.run_name=7",
        ]
    )
    assert config.losses["adversarial"].weight == Ramp.model_validate({"from": 0, "to": 0.5, "over": 0.25})
    assert config.losses["style"].when == FromEpoch(from_epoch=3)
    assert config.losses["feature_matching"].when == Every(every=2)
    assert isinstance(config.masking.ratio, Ramp)
    assert [type(beta) for beta in config.optimizer.discriminator.betas] == [float, float]
    assert config.data.size == (32, 64)
    assert config.tracking.run_name == "7"
    reread = parse_config(read_back(to_yaml(config)))
    assert reread == config


def read_back(text: str) -> dict[str, object]:
    return yaml.safe_load(text)  # a plain YAML 1.1 reader understands the file as well


def test_a_dump_in_python_holds_every_option():
    dump = load_config(["quickstart"]).model_dump(mode="json", by_alias=True)
    assert dump["data"]["num_images"] == 20000
    assert dump["discriminator"]["base_channels"] == 32
    weight = {"balanced": 0.1, "at": "decoder_input", "anchor": "l1", "every": 8, "cap": 1.0}
    assert dump["losses"]["adversarial"]["weight"] == weight


def test_base_lr_scales_with_the_batch():
    config = load_config(["optimizer.base_lr=1.5e-4", "training.batch_size=4096"])
    assert config.optimizer.lr is None
    assert generator_adam(config.optimizer, 4096)[0] == pytest.approx(2.4e-3)


def test_precision_no_is_a_word_not_a_truth_value():
    assert load_config(["quickstart", "training.precision=no"]).training.precision == "no"


def test_a_configuration_is_frozen_and_sections_are_known_by_name():
    config = load_config([])
    with pytest.raises(ValueError, match="frozen"):
        config.training.epochs = 3
    assert list(RunConfig.model_fields)[:5] == ["data", "masking", "generator", "discriminator", "augment"]


def test_every_mistake_stands_in_one_report_with_its_origin(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("traning: {epochs: 3}\noptimizer: {lrr: 1, betas: [0.9]}\nlosses: {styl: 3, l1: x}\n")
    lines = report(
        str(path), "training.epochs=many", "discriminator.kind=lsgan", "masking.ratio=1.5", "training.accumulation=7"
    )
    expected = [
        rf"{path}: traning: unknown key; allowed: data, .* \(did you mean 'training'\?\)",
        rf"{path}: optimizer.lrr: unknown key; .* \(did you mean 'lr'\?\)",
        rf"{path}: optimizer.betas: found \[0.9\], must be a list of 2 numbers.*",
        rf"{path}: losses.styl: unknown loss term; choose from: l1, .* \(did you mean 'style'\?\)",
        rf"{path}: losses.l1: found 'x', must be .*",
        r"training.epochs=many: training.epochs: found 'many', must be a whole number >= 1 and <= 1000000",
        r"discriminator.kind=lsgan: discriminator.kind: unknown discriminator 'lsgan'; choose from: ls_gan.*"
        r" \(did you mean 'ls_gan'\?\)",
        r"masking.ratio=1.5: masking.ratio: found 1.5, must be a number >= 0 and < 1 or .*",
        r"training.accumulation=7: training.accumulation: batch_size 64 cannot be divided into 7 .*",
    ]
    for pattern in expected:
        assert any(re.fullmatch(pattern, line) for line in lines), (pattern, lines)
    assert len(lines) == len(expected)


@pytest.mark.parametrize(
    ("overrides", "key", "message"),
    [
        (["data.image_size=30"], "data.image_size", "image size 30x30 is not a multiple of patch size 4; use 28x28"),
        (["generator.patch_size=5"], "generator.patch_size", "not a multiple of patch size 5"),
        (["data.image_size=36", "generator.rgb_heads=true"], "generator.rgb_heads", "cannot be halved"),
        (["generator.width=126"], "generator", "generator.width 126 must be a multiple"),
        (["generator.depth=0"], "generator.depth", "must be a whole number >= 1 and <= 256 or null"),
        (["discriminator.base_channels=0"], "discriminator", "base_channels"),
        (["discriminator=null", "losses={l1: 1, adversarial: 1, feature_matching: null, style: null}"],
         "losses.adversarial", "adversarial needs a discriminator"),
        (["losses={feature_matching: null, style: null}", "discriminator=null"],
         "discriminator", "adversarial needs a discriminator"),
        (["losses={feature_matching: null, style: null, adversarial: null}"],
         "losses.adversarial", "no loss term reads"),
        (["losses.style.network=vgg"], "losses.style.network.kind", "did you mean 'vgg16'?"),
        (["losses.style.network=vgg16"], "losses.style.network.weights", "vgg16 has no weights; set"),
        (["losses.style.network={kind: dvae, weights: random, layer: 1}"], "losses.style.network.layer", "'layers'?"),
        (["losses.style.network={kind: named, weights: random, name: resnet18, layers: [layer5]}"],
         "losses.style.network", "resnet18 has no layer 'layer5'"),
        (["losses.style.network={kind: lpips, weights: random}", "data.image_size=16"],
         "data.image_size", "lpips cannot take images of 16x16 pixels"),
        (["losses.style.network={kind: snapshot, every: 0}"], "losses.style.network", "every >= 1"),
        (["losses.style.network=null"], "losses.style.network", "found null"),
        (["losses.l1.network=vgg16"], "losses.l1.network", "unknown key"),
        (["losses.style.network=snapshot", "losses={feature_matching: null, adversarial: null}", "discriminator=null"],
         "discriminator", "style needs a discriminator"),
        (["losses={feature_matching: null, adversarial: null}", "losses.style.network={kind: vgg16, weights: random}"],
         "losses.style.network", "no loss term reads the discriminator ls_gan"),
        (["losses.l1=null", "losses.mse=1"], "losses.l1", "adversarial is balanced against the gradient of l1"),
        (["losses.l1=null", "losses.adversarial.weight={balanced: 0.1, anchor: reconstruction}"],
         "losses.adversarial.weight", "balanced against the reconstruction, of which no term is always on"),
        (["losses.adversarial.targets=position"], "losses.adversarial.targets", "set discriminator.fake=composite"),
        (["losses.adversarial.targets=position", "discriminator.fake=composite"],
         "discriminator", "needs a map of logits, but ls_gan gives one an image"),
        (["losses.adversarial={kind: relativistic, targets: position}"],
         "losses.adversarial", "goes with whole labels"),
        (["losses.l1.reach=decoder", "losses.adversarial.reach=decoder"],
         "losses", "no term that is always on reaches the encoder"),
        (["generator.freeze_encoder=true", "losses.uniformity=0.1"], "losses.uniformity", "which is frozen"),
        (["generator.freeze_encoder=true", "generator.drop_path=0.1"], "generator.drop_path", "this one is frozen"),
        (["losses.l1.low_levels=0", "generator.rgb_heads=true", "discriminator={kind: msg_gan, pyramid: pooled}"],
         "discriminator", "no term always reads the low levels"),
        (["discriminator.low_levels=half"], "discriminator.low_levels", "found 'half'"),
        (["discriminator.lead=2"], "discriminator.lead", "found 2"),
        (["losses.adversarial.when={from_share: 1.0}"], "losses.adversarial.when", "found"),
        (["optimizer.base_lr=1e-3"], "optimizer.base_lr", "both base_lr 0.001 and lr 0.002 are set"),
        (["schedule.warmup_epochs=3"], "schedule.warmup_epochs", "both warmup_ratio and warmup_epochs"),
        (["schedule={warmup_ratio: null, warmup_epochs: 9}"], "schedule.warmup_epochs", "longer than the run of 8"),
        (["losses.l1.region=masked", "masking.ratio=0"], "masking.ratio", "l1 compares hidden patches only"),
        (["losses.l1.region=masked", "masking.ratio={from: 0, to: 0.5}"], "masking.ratio", "hidden patches only"),
        (["masking.ratio={from: 0.5, to: 1.0}"], "masking.ratio", "must stay >= 0 and < 1"),
        (["training.accumulation=3"], "training.accumulation", "cannot be divided into 3"),
        (["training.epoch_images=10"], "training.epoch_images", "less than one batch of 64"),
        (["data.mean=[0.5]"], "data.mean", "1 means but 3 deviations"),
        (["data.mean=[0.5]", "data.std=[0.5]"], "data.std", "images of shapes have 3 channels"),
        (["data.eval_resize=16"], "data.eval_resize", "smaller than the crop of 32x32"),
        (["data.crop_scale=[1, 0.2]"], "data.crop_scale", "two ascending shares"),
        (["losses.l1.when=even_epochs", "losses.adversarial.when=even_epochs"], "losses", "no term is on all the time"),
        (["training.keep_every=0"], "training.keep_every", "must be a whole number >= 1 and <= 1000000 or null"),
        (["training.keep_last=-1"], "training.keep_last", "must be a whole number >= 1"),
        (["lr=1e-3"], "lr", r"did you mean 'optimizer.lr'?"),
        (["losses.adversarial.balanced=0.1"], "losses.adversarial.balanced", "did you mean 'weight.balanced'?"),
        (["training.epochs=.nan"], "training.epochs", "found .nan"),
        (["losses.l1={weight: .inf}"], "losses.l1.weight", "found .inf"),
        (["losses.l1=true"], "losses.l1", "found true"),
        (["training.epochs=true"], "training.epochs", "found true"),
        (["optimizer.discriminator.beta=1"], "optimizer.discriminator.beta", "did you mean 'betas'?"),
        (["optimizer.discriminator=3"], "optimizer.discriminator", "found 3, must be a mapping"),
        (["generator=[1]"], "generator", "must be a mapping"),
        (["data=3"], "data", "must be a mapping"),
        (["losses=3"], "losses", "must be a mapping of l1, mse, high_frequency, ms_ssim, feature_matching"),
        (["penalties=5"], "penalties", "found 5, must be a mapping of r1, r2, lecam, path_length"),
        (["losses.l1=[1]"], "losses.l1", "must be a mapping"),
        (["tracking.trackers=[tensorbord]"], "tracking.trackers", "did you mean 'tensorboard'?"),
        (["data.kind=cifar10", "data.size=null"], "data.root", "is missing, must be text"),
    ],
)  # fmt: skip
def test_a_misfit_is_reported_at_the_key_that_was_set_last(overrides, key, message):
    lines = report(*overrides)
    reported = [line for line in lines if f": {key}: " in line and message in line]
    assert len(reported) == 1, lines


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("losses.adversarial.weight={balanced: 0.1, capp: 1.0}", "losses.adversarial.weight"),
        ("losses.adversarial.weight={balancd: 0.1}", "losses.adversarial.weight"),
        ("losses.l1.weight={from: 0.5, to: 1.0, ovr: 0.5}", "losses.l1.weight"),
        ("losses.l1.weight={from: 0.5, to: 1.0, cap: 2.0}", "losses.l1.weight"),
        ("masking.ratio={from: 0.5, to: 0.75, until: 0.5}", "masking.ratio"),
        ("losses.style.when={from_epoch: 2, evry: 3}", "losses.style.when"),
        ("losses.style.when={from_epoch: 2, every: 3}", "losses.style.when"),
        ("losses.style.when={frm_epoch: 2}", "losses.style.when"),
    ],
)
def test_unknown_keys_inside_a_balance_a_ramp_or_a_phase_are_refused(override, key):
    (line,) = report(override)
    assert f": {key}: found " in line


def test_a_network_is_known_by_its_kind_and_its_options_are_laid_on_top(tmp_path):
    config = load_config(["quickstart"])
    assert config.losses.networks().keys() == {"feature_matching", "style"}
    assert all(network.kind == "discriminator" for network in config.losses.networks().values())
    path = tmp_path / "mine.yaml"
    path.write_text("losses: {l1: 1, style: {weight: 40, network: {kind: dvae, width: 8}}}\ndiscriminator: null\n")
    weights = "losses.style.network.weights=no_such_file.pt"  # opened by a training run, not by its configuration
    network = load_config(["quickstart", str(path), weights]).losses.networks()["style"]
    assert (network.kind, network.options()["width"], network.options()["weights"]) == ("dvae", 8, "no_such_file.pt")
    other = load_config(["quickstart", str(path), "losses.style.network=snapshot", "discriminator={kind: ls_gan}"])
    assert other.losses.networks()["style"].options() == {"every": 5}
    assert other.losses["style"].weight == 40


def test_a_term_with_a_fixed_network_needs_no_discriminator():
    networks = [f"losses.{term}.network={{kind: vgg16, weights: random}}" for term in ("feature_matching", "style")]
    config = load_config(["quickstart", *networks, "losses.adversarial=null", "discriminator=null"])
    assert config.losses.discriminator_readers() == []
    mixed = load_config(["quickstart", networks[0], "losses.style.network={kind: snapshot, every: 2}"])
    assert mixed.losses.discriminator_readers() == ["style", "adversarial"]
    assert parse_config(read_back(to_yaml(mixed))) == mixed


def test_methods_of_fixed_networks_ask_for_their_weights_by_key():
    for method in ("dvae_p", "vgg_p"):
        with pytest.raises(UserError) as caught:
            load_config(["quickstart", method])
        kind = method.removesuffix("_p").replace("vgg", "vgg16")
        for line, term in zip(str(caught.value).splitlines(), ("feature_matching", "style"), strict=True):
            assert f"losses.{term}.network.weights: cannot be built: {kind} has no weights; set `weights`" in line


def test_a_teacher_is_named_with_its_layers_and_asked_for_its_weights_by_key():
    with pytest.raises(UserError) as caught:
        load_config(["quickstart", "teacher_p"])
    place = "losses.feature_matching.network"
    assert f"{place}.weights: cannot be built: squeezenet1_1 has no weights; set `weights`" in str(caught.value)
    named = [f"{place}.{option}" for option in ("name=resnet18", "layers=[layer1]", "weights=random")]
    network = load_config(["quickstart", "teacher_p", *named]).losses.networks()["feature_matching"]
    assert (network.kind, network.options()["name"], network.options()["layers"]) == ("named", "resnet18", ("layer1",))


def test_the_authors_weights_and_schedule_are_the_published_ones():
    config = load_config(["imagenet", "official_code"])
    weights = {name: term.weight for name, term in config.losses.items()}
    assert weights == {"l1": 2.0, "feature_matching": 0.05, "style": 40.0, "adversarial": 0.7}
    assert all(term.when == "always" for _, term in config.losses.items())
    assert [network.options() for network in config.losses.networks().values()] == [{"every": 5}] * 2
    assert (config.optimizer.lr, config.optimizer.discriminator.lr, config.training.batch_size) == (1.5e-4, 1.5e-4, 16)
    assert (config.schedule.warmup_epochs, config.optimizer.weight_decay) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("layers", "reported"),
    [
        (["stylegan2_ada_p", "penalties.r1.every=0"], "penalties.r1.every=0: penalties.r1: cannot be built"),
        (["stylegan2_ada_p", "augment.p_max=2"], "augment.p_max=2: augment: cannot be built"),
        (["stylegan2_ada_p", "discriminator.channel_base=3"], "discriminator.channel_base=3: discriminator: cannot be"),
        (["msg_gan_p", "generator.width=126"], "generator.width=126: generator: cannot be built"),
        (["ls_gan_p", "losses.l1.low_levels=-3"], "losses.l1.low_levels=-3: losses.l1: low_levels must be 0 or more"),
        (["FILE"], "FILE: generator: cannot be built"),
        (["FILE", "discriminator.base_channels=0"], "discriminator.base_channels=0: discriminator: cannot be built"),
    ],
)
def test_a_misfit_of_an_option_is_reported_where_the_section_was_touched_last(layers, reported, tmp_path):
    """Be it by a method, a file of one's own (`FILE`, with a bad width) or an override."""
    path = tmp_path / "mine.yaml"
    path.write_text("generator: {width: 130}\n" if "generator" in reported else "discriminator: {base_channels: -1}\n")
    lines = report(*(str(path) if layer == "FILE" else layer for layer in layers))
    assert any(line.startswith(reported.replace("FILE", str(path))) for line in lines), lines


def test_norm_pix_refuses_terms_and_heads_that_need_images():
    lines = report("generator.norm_pix=true", "generator.rgb_heads=true")
    assert sum("compares images" in line for line in lines) == 3
    assert sum("not images for rgb_heads" in line for line in lines) == 1
    assert len(lines) == 4


def test_a_run_without_terms_is_refused(tmp_path):
    path = tmp_path / "none.yaml"
    path.write_text("losses: {}\ndiscriminator: null\n")
    assert "no term at all" in report(str(path))[0]
    path.write_text("losses:\ndiscriminator: null\n")
    assert "no term at all" in report(str(path))[0]


def test_a_misspelt_term_is_the_only_mistake_it_makes(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text("losses: {l1: 1.0, adverserial: 1.0}\n")
    lines = report(str(path))
    assert len(lines) == 1
    assert "did you mean 'adversarial'?" in lines[0]


def test_an_unknown_kind_hides_no_other_mistake_and_makes_none():
    lines = report("data.kind=shape", "generator.norm_pix=maybe", "training.accumulation=3")
    assert len(lines) == 3


def test_an_empty_section_says_nothing(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("training:\ndata:\n")
    assert load_config([str(path)]) == load_config([])


def test_an_empty_mapping_does_not_switch_augmentation_on(tmp_path):
    (line,) = report("augment={}")
    assert line == "augment={}: augment: found {}, must name a kind (ada, diffaug), or be null for none"
    path = tmp_path / "empty.yaml"
    path.write_text("augment: {}\ndiscriminator: {}\n")
    beneath = load_config(["quickstart", "stylegan2_ada_p"])
    assert load_config(["quickstart", "stylegan2_ada_p", str(path)]) == beneath  # says nothing of what is there
    assert load_config(["quickstart", "augment={target: 0.5}"]).augment is not None  # an option speaks for its kind


def test_a_discriminator_of_ones_own_is_read_and_built(tmp_path, monkeypatch):
    (tmp_path / "my_critics.py").write_text(
        "from collections.abc import Sequence\n"
        "class Critic:\n"
        "    def __init__(self, resolutions: Sequence[tuple[int, int]], channels: int, *, width: int = 8) -> None:\n"
        "        self.width = width\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = parse_config({"discriminator": {"kind": "my_critics:Critic", "width": 4}}, trust=EVERYTHING)
    assert config.discriminator is not None
    assert config.discriminator.build([(32, 32)], 3).width == 4
    assert parse_config(read_back(to_yaml(config)), trust=EVERYTHING) == config


def test_values_from_python_are_reported_under_a_name_of_their_own():
    with pytest.raises(UserError, match=r"^runs/a/config.yaml: training.epochs: found 0"):
        parse_config({"training": {"epochs": 0}}, origin="runs/a/config.yaml")


def test_the_schema_knows_every_section_kind_and_term():
    schema = json_schema()
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    assert set(schema["properties"]["losses"]["properties"]) >= {"l1", "mse", "ms_ssim", "adversarial"}
    text = str(schema)
    assert all(
        f"'{word}'" in text for word in ("image_folder", "num_images", "base_channels", "patch_size", "region", "vgg16")
    )
