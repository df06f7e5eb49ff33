"""Two processes of test_processes.py, with FOLDER METHOD:ACCUMULATION...: steps in float64, then files of rank 0."""

import sys

import torch
from safetensors.torch import save_file

from conftest import PERCEPTUAL, debug_trainer, random_batches
from perceptual_mae.schedules import TrainingProgress

SEQUENTIAL = "training.order=sequential"
METHODS = {
    "mse": ["mse"],
    "attention": ["mse", "masking.kind=attention"],
    "ls_gan_p": ["ls_gan_p", SEQUENTIAL],
    "msg_gan_p": ["msg_gan_p", "penalties={r1: {gamma: 1.0, every: 2}}", SEQUENTIAL],
    "snapshot": ["ls_gan_p", *(f"losses.{term}.network={{kind: snapshot, every: 2}}" for term in PERCEPTUAL)],
    "path_to_the_image": ["stylegan2_ada_p", "penalties.path_length.target=image", "losses.adversarial.kind=hinge"],
    "stylegan2_ada_p": [
        *("stylegan2_ada_p", "penalties.r1.every=2", "augment.initial_p=0.3", "augment.kimg=1.0", SEQUENTIAL)
    ],
    "encoder_options": [
        *("ls_gan_p", "generator.drop_path=0.5", "generator.positions=learned", "generator.relative_positions=true"),
        *("generator.layer_scale=0.1", "generator.encoder_mask_tokens=true", SEQUENTIAL),
    ],
    "pooled_and_discounted": [
        *("msg_gan_p", "generator.rgb_heads=false", "losses.l1.low_levels=0", "discriminator.pyramid=pooled"),
        *("discriminator.low_levels=k^-2", "training.order=lean"),
    ],
    "composite_by_position": [
        *("ls_gan", "discriminator.form=patch", "discriminator.fake=composite", "discriminator.discretise=true"),
        *("losses.adversarial.targets=position", SEQUENTIAL),
    ],
    "balanced_at_weights": [
        *("ls_gan_p", "generator.skips=true", "losses.adversarial.reach=decoder", "training.order=lean"),
        "losses.adversarial.weight={balanced: 0.3, at: decoder, anchor: reconstruction, every: 2}",
        "losses.style.weight={balanced: 0.1, at: last_layer, every: 1, cap: 40}",
    ],
    "late": [
        *("ls_gan", "losses.adversarial.when={from_share: 0.2}", "discriminator.lead=0.1", "training.order=lean"),
        "generator.freeze_encoder=true",
    ],
    "relativistic": [
        *("ls_gan", "losses.adversarial.kind=relativistic", "augment={kind: diffaug}", "training.order=lean"),
        "penalties={r1: {gamma: {from: 0.5, to: 0.1}, every: 1}, r2: {gamma: 0.3, every: 2}}",
    ],
    "lecam": ["ls_gan", "penalties={lecam: {weight: 0.3, from_step: 2}}", SEQUENTIAL],
    "projected": [
        *("ls_gan", "discriminator={kind: projected, width: 8}", "training.order=lean"),
        "discriminator.network={kind: named, name: squeezenet1_0, layers: [features.4], weights: random}",
    ],
    "token": [
        *("gan_mae", "losses.adversarial.weight=0.3", "losses.feature_matching=0.1", "training.order=lean"),
        "penalties={r1: {gamma: 1.0, every: 2}}",
    ],
    "shared": [
        *("msg_gan_p", "discriminator.batch_share=0.5", "discriminator.minibatch_group=2", "training.order=lean"),
        "penalties={r1: {gamma: 1.0, every: 1}, r2: {gamma: 0.3, every: 2}}",
    ],
    "cropped": [
        *("ls_gan_p", "discriminator.crop=16", "discriminator.batch_share=0.5", "training.order=lean"),
        "penalties={r1: {gamma: 1.0, every: 1, batch_share: 0.5}, r2: {gamma: 0.3, every: 2, batch_share: 0.5}}",
        "augment={kind: ada, initial_p: 0.5, kimg: 1.0, interval: 1}",
    ],
    "seldom": [
        *("ls_gan_p", "discriminator.every=2", "penalties={r1: {gamma: 1.0, every: 2}}", "training.order=lean"),
        "augment={kind: ada, initial_p: 0.5, kimg: 1.0, interval: 1}",
    ],
    "ls_gan_p_lean": ["ls_gan_p", "training.order=lean"],
    "msg_gan_p_lean": ["msg_gan_p", "penalties={r1: {gamma: 1.0, every: 2}}", "training.order=lean"],
    "stylegan2_ada_p_lean": [
        *("stylegan2_ada_p", "penalties.r1.every=2", "augment.initial_p=0.3", "augment.kimg=1.0", "training.order=lean")
    ],
}
CASES = [(method, accumulation) for method in METHODS for accumulation in (1, 2)]


def train(method: str, accumulation: int) -> dict[str, torch.Tensor]:
    """Train six steps over odd and even epochs on this process's share of 16 images; return losses and weights."""
    trainer = debug_trainer(*METHODS[method], dtype=torch.float64)
    accelerator = trainer.accelerator
    stride = accelerator.num_processes * accumulation
    first = accelerator.process_index * accumulation
    outcome = {}
    for step in range(6):
        own = random_batches(16, stride, seed=step)[first : first + accumulation]
        scalars = trainer.step(own, TrainingProgress(1 + step // 3, step, step / 16))
        scalars.pop("variety", None)  # a deviation over the images of one micro-batch
        for name, value in scalars.items():
            everywhere = accelerator.gather(value.reshape(1))
            outcome[f"{step}/{name}"] = everywhere.mean()
            if name.startswith(("augment/", "path_length/")):  # the same number on every process, not only on average
                outcome[f"{step}/{name}/spread"] = everywhere.max() - everywhere.min()
    networks = {"generator": trainer.unwrapped_generator}
    if trainer.adversary is not None:
        networks["discriminator"] = trainer.unwrapped_discriminator
    states = {owner: network.state_dict() for owner, network in networks.items()}
    return outcome | {f"{owner}/{name}": value for owner, state in states.items() for name, value in state.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *named = sys.argv[1:]
    for method, _, number in (case.partition(":") for case in named):
        outcome = train(method, int(number))
        if int(torch.distributed.get_rank()) == 0:
            contiguous = {name: value.contiguous() for name, value in outcome.items()}
            save_file(contiguous, f"{folder}/{method}-{number}")
    torch.distributed.destroy_process_group()
