"""Overrides that no run can be made of."""

from pathlib import Path

import pytest

from conftest import DEBUG, sampled
from refusal import check_refusal

HUGE = "1" + 20 * "0"

# The method, the override, and what the line says of it.
OVERRIDES = [
    # Words and values that are not finite
    *(("mse", f"{key}={value}", key)
      for key in ("optimizer.lr", "optimizer.weight_decay", "optimizer.clip_norm", "losses.mse.weight",
                  "losses.mse.low_levels", "generator.layer_scale", "generator.mlp_ratio", "generator.drop_path",
                  "schedule.min_lr", "masking.ratio", "training.ema_kimg", "data.flip", "data.color_jitter")
      for value in ("inf", ".inf", "-.inf", "nan", ".nan")),
    ("mse", "losses.mse.weight={from: inf, to: 1}", "losses.mse.weight"),
    ("mse", "losses.mse.weight={from: 0, to: .inf}", "losses.mse.weight"),
    ("mse", "losses.mse.weight={from: 0, to: 1, over: nan}", "losses.mse.weight"),
    ("mse", "masking.ratio={from: .nan, to: 0.5}", "masking.ratio"),
    ("ls_gan_p", "losses.adversarial.weight={balanced: inf}", "losses.adversarial.weight"),
    ("ls_gan_p", "losses.adversarial.weight={balanced: 0.1, cap: inf}", "losses.adversarial.weight"),
    ("ls_gan_p", "discriminator.low_levels=inf", "discriminator.low_levels"),
    ("ls_gan_p", "optimizer.discriminator.lr=nan", "optimizer.discriminator.lr"),
    ("ls_gan_p", "penalties={r1: {gamma: inf}}", "penalties.r1.gamma"),
    ("ls_gan_p", "augment={kind: ada, kimg: inf}", "augment"),
    ("mse", "data.mean=[inf, 0, 0]", "data.mean"),
    ("mse", "data.std=[nan, 1, 1]", "data.std"),
    # Beyond what can be counted, allocated or waited for
    *(("mse", f"{key}={HUGE}", key)
      for key in ("generator.depth", "generator.width", "generator.heads", "generator.decoder_depth",
                  "generator.decoder_width", "generator.decoder_heads", "generator.patch_size", "data.image_size",
                  "data.num_images", "data.seed", "data.size", "data.workers", "training.epochs",
                  "training.batch_size", "training.accumulation", "training.seed", "training.log_every",
                  "training.checkpoint_every", "training.keep_last", "training.keep_every", "training.epoch_images",
                  "evaluation.every", "evaluation.limit", "evaluation.batch_size", "evaluation.seed",
                  "evaluation.grid_images", "evaluation.probe_images", "data.eval_resize")),
    *(("mse", f"{key}=-1", key)
      for key in ("generator.depth", "generator.width", "generator.decoder_heads", "data.image_size",
                  "data.num_images", "data.seed", "data.workers", "training.epochs", "training.batch_size",
                  "training.seed", "evaluation.every", "evaluation.limit", "optimizer.lr", "schedule.min_lr",
                  "masking.ratio", "losses.mse.weight", "losses.mse.low_levels", "generator.layer_scale")),
    ("mse", "generator.width=9223372036854775808", "generator.width"),
    ("mse", "data.image_size=[100000,100000]", "data.image_size"),
    ("mse", "data.image_size=[32, 32, 32]", "data.image_size"),
    ("mse", "generator.mlp_ratio=1e300", "generator.mlp_ratio"),
    ("mse", "generator.mlp_ratio=0", "generator.mlp_ratio"),
    ("mse", "losses.mse.weight=1e300", "losses.mse.weight"),
    ("mse", "optimizer.lr=1e300", "optimizer.lr"),
    ("ms_ssim_l1", f"losses.ms_ssim.levels={HUGE}", "losses.ms_ssim.levels"),
    ("ms_ssim_l1", "losses.ms_ssim={form: wang, window: 1000000001}", "losses.ms_ssim.window"),
    ("ls_gan_p", f"discriminator.base_channels={HUGE}", "discriminator.base_channels"),
    ("ls_gan_p", "discriminator={base_channels: 2147483647, max_channels: 2147483647}", "discriminator"),
    ("ls_gan_p", "penalties={r1: {every: 99999999999}}", "penalties.r1.every"),
    ("ls_gan_p", f"augment={{kind: ada, interval: {HUGE}}}", "augment"),
    # Of the wrong type
    *(("mse", f"{key}={value}", key)
      for key in ("training.epochs", "optimizer.lr", "masking.ratio", "generator.depth")
      for value in ("many", "true", "[1]", "{a: 1}")),
    ("mse", "training.epochs=1.5", "training.epochs"),
    ("mse", "training.precision=fp8", "training.precision"),
    ("mse", "training.order=random", "training.order"),
    ("mse", "evaluation.split=train", "evaluation.split"),
    ("mse", "tracking.trackers=[mlflow]", "tracking.trackers"),
    ("mse", "generator.size=giant", "generator.size"),
    ("mse", "generator.skip_map=odd", "generator.skip_map"),
    ("mse", "generator.positions=polar", "generator.positions"),
    ("mse", "data.crop=left", "data.crop"),
    ("mse", "data.flip=2", "data.flip"),
    ("mse", "data.std=[0, 1, 1]", "data.std"),
    ("mse", "optimizer.betas=[0.9]", "optimizer.betas"),
    ("mse", "optimizer.betas=[0.9, 1]", "optimizer.betas"),
    ("mse", "training=7", "training"),
    ("mse", "data=[]", "data"),
    # Names that do not exist
    ("mse", "training.epoch=3", "did you mean 'epochs'"),
    ("mse", "trainig.epochs=3", "did you mean 'training'"),
    ("mse", "losses.mes=1", "choose from"),
    ("mse", "data.kind=mnist", "choose from"),
    ("mse", "masking.kind=blocks", "did you mean 'block'"),
    ("mse", "discriminator.kind=lsgan", "did you mean 'ls_gan'"),
    ("mse", "penalties.r3={}", "penalties.r3"),
    ("mse", "data.kind=no_such_module:Images", "data.kind"),
    ("mse", "losses.mse.region=hidden", "losses.mse.region"),
    ("mse", "losses.mse.when=sometimes", "losses.mse.when"),
    ("mse", "losses.mse.when={from_epoch: 0}", "losses.mse.when"),
    ("mse", "losses.mse.when={every: 0}", "losses.mse.when"),
    # What does not fit together
    ("mse", "masking.ratio=0.999", "use at most 0.9375"),
    ("mse", "masking.ratio=1e-9", "use at least 0.0625, or 0"),
    ("mse", "masking.ratio={from: 0.5, to: 0.99}", "use at most 0.9375"),
    ("mse", "masking.ratio=0", "masking.ratio"),
    ("mse", "masking.ratio=1", "masking.ratio"),
    ("mse", "masking={kind: block, smallest: 0}", "masking"),
    ("mse", "schedule.min_lr=1", "above the peak learning rate 0.001; lower it"),
    ("mse", "schedule.warmup_epochs=3", "schedule.warmup"),
    ("mse", "optimizer.base_lr=1e-3", "both base_lr"),
    ("mse", "training.accumulation=3", "micro-batches"),
    ("mse", "training.epoch_images=7", "epoch_images"),
    ("mse", "data.image_size=33", "use 32x32"),
    ("mse", "data.eval_resize=16", "enlarge it"),
    ("mse", "data.crop_scale=[1, 0.5]", "ascending"),
    ("mse", "data.mean=[0.5]", "data.mean"),
    ("mse", "generator.heads=3", "generator"),
    ("mse", "generator.norm_pix=true generator.rgb_heads=true", "norm_pix"),
    ("mse", "generator.init_decoder=true", "generator.init_from"),
    ("mse", "losses.mse=0", "no term"),
    ("mse", "losses=null", "losses"),
    ("mse", "losses.adversarial={weight: 1}", "needs a discriminator"),
    ("mse", "augment={kind: ada}", "remove it"),
    ("mse", "penalties={r1: {}}", "remove it"),
    ("ls_gan_p", "losses.l1=null", "losses"),
    ("ls_gan_p", "augment={}", "augment"),
    ("ls_gan_p", "discriminator.lead=2", "discriminator.lead"),
    ("ls_gan_p", "losses.adversarial={kind: relativistic, half: real_only}", "adversarial"),
]  # fmt: skip

FILES = {
    "list": ("- 1\n- 2\n", "must hold sections"),
    "number": ("7\n", "must hold sections"),
    "text": ("a word\n", "must hold sections"),
    "unclosed": ("training: [1\nseed: 2", "line 2"),
    "tab": ("training:\n\tepochs: 3\n", "line 2"),
    "twice": ("training: {epochs: 1}\ntraining: {epochs: 2}\n", "training"),
    "tag": ("training: !!python/object/apply:os.system ['true']\n", "tag"),
    "number_as_key": ("1: {epochs: 3}\n", "a key must be a word"),
    "loop": ("training: &a {epochs: *a}\n", "refers to itself"),
    "missing_anchor": ("training: *missing\n", "undefined alias"),
    "two_documents": ("training: {epochs: 1}\n---\ntraining: {epochs: 2}\n", "line 2"),
    "infinity": ("optimizer: {lr: inf}\n", "optimizer.lr"),
    "a_long_number": (f"training: {{epochs: {'9' * 5000}}}\n", ""),
    "section_as_list": ("training: [epochs, 3]\n", "training"),
    "deep": ("training: " + "{a: " * 300 + "1" + "}" * 300, ""),
    "control": ("training: {epochs: \x07}\n", "not"),
}


@pytest.mark.parametrize(
    ("method", "override", "names"), sampled(OVERRIDES, [" ".join(row[:2])[:60] for row in OVERRIDES])
)
def test_an_override_that_cannot_be_is_refused_in_one_line(
    method: str, override: str, names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    overrides = override.split(" generator.") if " generator." in override else [override]
    words = [overrides[0], *(f"generator.{rest}" for rest in overrides[1:])]
    check_refusal(["pretrain", DEBUG, method, *words, "--out", "run"], names, tmp_path, capsys)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, names = FILES[name]
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    check_refusal(["pretrain", DEBUG, "mse", "mine.yaml", "--out", "run"], names, tmp_path, capsys)
