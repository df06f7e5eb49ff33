"""The rows of the critic's study: the words each is trained with, the row it starts from, and its exact control.

A row is its base's words and its own; one that begins with a method of its own stands for itself, and its base is what
it is compared with. A control has the same generator and the same pixel terms, and no critic.
"""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What a row's configuration adds to that of its base; `control` is its base's where it names none.

    sharpens: the row whose finished run it sharpens, which is its control; its words are then those of `pmae sharpen`.
    """

    words: tuple[str, ...]
    base: str = ""
    control: str = ""
    sharpens: str = ""


FILE = "FILE"
"""Stands in a row's words for SqueezeNet's file of weights."""
SQUEEZENET = f"{{kind: named, name: squeezenet1_0, layers: [features.4, features.7], weights: {FILE}}}"
AT_128 = SQUEEZENET.replace("}", ", image_size: 128}")
"""The same of images enlarged to 128 px, as Projected GANs enlarge them."""
TARGET = f"losses.feature_matching={{weight: {{balanced: 0.3, cap: 1}}, when: always, network: {SQUEEZENET}}}"
"""The perceptual target: SqueezeNet's features of fake and real, at the share of L1's gradient that the critic has."""


def _share(share: float, more: str = "") -> str:
    return f"losses.adversarial.weight={{balanced: {share}, cap: 1{more}}}"


NO_CRITIC = {
    "mse": Row(("mse",)),
    "ms_ssim_l1": Row(("ms_ssim_l1",)),
    "l1": Row(("l1",)),
    "l1_skips": Row(("generator.skips=true",), "l1"),
    "l1_skips_ms_ssim": Row(("losses.ms_ssim=1",), "l1_skips"),
    "l1_heads": Row(("generator.rgb_heads=true", "losses.l1.low_levels=0.1"), "l1_skips"),
    "l1_heads_depth_6": Row(("generator.decoder_depth=6",), "l1_heads"),
}
SHIPPED = {
    "ls_gan_p": Row(("ls_gan_p",), control="l1"),
    "msg_gan": Row(("msg_gan",), control="l1_heads"),
    "msg_gan_p": Row(("msg_gan_p",), control="l1_heads"),
    "stylegan2_ada_p": Row(("stylegan2_ada_p", "discriminator.channel_base=1024"), control="l1_heads"),
}
OF_PYRAMIDS = {
    "msg_pooled": Row(("discriminator.pyramid=pooled",), "msg_gan"),
    "msg_pooled_no_heads": Row(("generator.rgb_heads=false",), "msg_pooled", "l1_skips"),
    "msg_low_levels_0.1": Row(("discriminator.low_levels=0.1",), "msg_gan"),
    "msg_low_levels_k^-2": Row(("discriminator.low_levels=k^-2",), "msg_gan"),
    "msg_at_last_layer": Row((_share(0.2, ", at: last_layer"),), "msg_gan"),
    "msg_at_decoder": Row((_share(0.2, ", at: decoder"),), "msg_gan"),
    "msg_depth_6": Row(("generator.decoder_depth=6",), "msg_gan", "l1_heads_depth_6"),
    "stylegan2_pooled": Row(("discriminator.pyramid=pooled",), "stylegan2_ada_p"),
    "stylegan2_low_levels_k^-2": Row(("discriminator.low_levels=k^-2",), "stylegan2_ada_p"),
}
"""Single changes of the shipped pyramid critics."""
START = {"start": Row(("generator.skips=true", _share(0.3)), "ls_gan_p", "l1_skips")}
"""The best start: skips without heads, a single full-size critic at a share of .3."""
OF_THE_START = {
    "no_features": Row(("ls_gan", "generator.skips=true", _share(0.3)), "start", "l1_skips"),
    "share_0.1": Row((_share(0.1),), "start"),
    "share_0.6": Row((_share(0.6),), "start"),
    "at_last_layer": Row((_share(0.3, ", at: last_layer"),), "start"),
    "at_decoder": Row((_share(0.3, ", at: decoder"),), "start"),
    "ms_ssim": Row(("losses.ms_ssim=1",), "start", "l1_skips_ms_ssim"),
    "anchor_reconstruction": Row((_share(0.3, ", anchor: reconstruction"),), "ms_ssim"),
    "composite": Row(("discriminator.fake=composite",), "start"),
    "patch": Row(("discriminator.form=patch",), "start"),
    "patch_composite": Row(("discriminator.fake=composite",), "patch"),
    "patch_position": Row(("losses.adversarial.targets=position",), "patch_composite"),
    "late": Row(("losses.adversarial.when={from_share: 0.2}",), "start"),
    "late_lead": Row(("discriminator.lead=0.1",), "late"),
    "rate_follows": Row(("optimizer.discriminator.schedule=follow",), "start"),
    "rate_6e-4": Row(("optimizer.discriminator.lr=6.0e-4",), "start"),
    "rate_2.4e-3": Row(("optimizer.discriminator.lr=2.4e-3",), "start"),
    "hinge": Row(("losses.adversarial.kind=hinge",), "start"),
    "relativistic": Row(("losses.adversarial.kind=relativistic",), "start"),
    "relativistic_r1_r2": Row(
        ("penalties.r1={gamma: 0.01, every: 1}", "penalties.r2={gamma: 0.01, every: 1}"), "relativistic"
    ),
    # BigGAN's weight on CIFAR-10; its usual start, step 1000, lies beyond the ladder's 312 steps.
    "lecam": Row(("penalties.lecam={weight: 0.3, from_step: 30}",), "start"),
    "diffaug": Row(("augment={kind: diffaug}",), "start"),
    "discretise": Row(("discriminator.discretise=true",), "start"),
    "projected": Row((f"discriminator={{kind: projected, network: {SQUEEZENET}}}",), "no_features"),
    "projected_128": Row((f"discriminator={{kind: projected, network: {AT_128}}}",), "no_features"),
    "stylegan2_single": Row(
        (
            *("discriminator={kind: stylegan2, input: single, channel_base: 1024}", "augment={kind: ada}"),
            *("penalties.r1={gamma: auto, every: 16}", "optimizer.discriminator={lr: 2.5e-3, betas: [0, 0.99]}"),
        ),
        "start",
    ),
}
"""Single changes of the start; StyleGAN2 comes with its R1, ADA and rate."""
COMBINED = {"ms_ssim_at_decoder": Row((_share(0.3, ", at: decoder"),), "ms_ssim")}
"""Made of what the ladder showed, and trained in the final alone."""
PERCEPTUAL = {
    "perceptual": Row((TARGET,), "l1_skips", "l1_skips"),
    "critic_decoder": Row(
        tuple(f"losses.{term}.reach=decoder" for term in ("adversarial", "feature_matching", "style")), "start"
    ),
    "perceptual_and_critic": Row((TARGET,), "start"),
}
CHEAPER = {
    "balance_32": Row((_share(0.3, ", every: 32"),), "start"),
    "crop_16": Row(("discriminator.crop=16",), "start"),
    "batch_share_0.5": Row(("discriminator.batch_share=0.5",), "start"),
    "every_2": Row(("discriminator.every=2",), "start"),
    "space_to_depth": Row(("discriminator.stem=space_to_depth",), "start"),
    "stylegan2_r1_0.25": Row(("penalties.r1.batch_share=0.25",), "stylegan2_ada_p"),
    "stylegan2_half_channels": Row(("discriminator.channel_base=512",), "stylegan2_ada_p"),
    "stylegan2_path_16": Row(("penalties.path_length.every=16",), "stylegan2_ada_p"),
}
"""What makes the discriminator cheaper (docs/results/cost.md), one change a row."""
DEEPER_AT_64 = SQUEEZENET.replace("features.7]", "features.7, features.12]").replace("}", ", image_size: 64}")
BY_FEATURES = (
    *("l1", "training.batch_size=4"),
    f"losses.feature_matching={{weight: {{balanced: 6, cap: 1000}}, when: always, network: {DEEPER_AT_64}}}",
)
"""No critic; chosen on images held out from train, as docs/results/critic.md says."""
SHARPENED = {
    **{
        f"{row}_sharpened": Row(("recommended",), control=row, sharpens=row)
        for row in ("mse", "l1_skips", "ms_ssim_l1")
    },
    **{f"{row}_sharpened_by_features": Row(BY_FEATURES, control=row, sharpens=row) for row in ("mse", "l1_skips")},
}
CRITICS = {**SHIPPED, **OF_PYRAMIDS, **START, **OF_THE_START, **COMBINED, **PERCEPTUAL, **CHEAPER}
ROWS = {**NO_CRITIC, **CRITICS, **SHARPENED}

CHOSEN = ("lecam", "msg_low_levels_k^-2", "composite", "share_0.1")
"""The four rows that the ladder chose for the final, by the rule of docs/results/critic.md."""
NAMED = ("start", "ms_ssim", "at_decoder", "ms_ssim_at_decoder")
"""In the final for other reasons, which the page states."""
PARTS = {
    "ladder": ("msg_gan", "msg_gan_p", "stylegan2_ada_p", *OF_PYRAMIDS, *START, *OF_THE_START),
    "final": ("mse", "l1", "ms_ssim_l1", "ls_gan_p", "msg_gan_p", *CHOSEN, *NAMED),
    "arms": ("l1_skips", "perceptual", "start", "critic_decoder", "perceptual_and_critic"),
    "price": ("start", "stylegan2_ada_p", *CHEAPER),
    "sharpen": ("mse_sharpened", "l1_skips_sharpened", "mse_sharpened_by_features", "l1_skips_sharpened_by_features"),
}
"""The rows of each part; their controls are added."""


def words_of(name: str, squeezenet: str = "") -> tuple[str, ...]:
    """Return the words of a row's training, its method first; `squeezenet` is its file of weights."""
    row = ROWS[name]
    stands_alone = not row.base or "=" not in row.words[0]
    own = tuple(word.replace(FILE, json.dumps(squeezenet)) for word in row.words)
    return own if stands_alone else (*words_of(row.base, squeezenet), *own)


def control_of(name: str) -> str:
    """Return the name of a row's control; empty for a row that is one."""
    row = ROWS[name]
    if row.control or not row.base or name in NO_CRITIC:
        return row.control
    return control_of(row.base)


def needs_squeezenet(name: str) -> bool:
    return FILE in " ".join(words_of(name, FILE))


def with_controls(names: tuple[str, ...]) -> list[str]:
    """Return rows and their controls, in the order of ROWS."""
    wanted = {*names, *map(control_of, names)}
    return [name for name in ROWS if name in wanted]
