"""The state of a trainer as tensors and metadata, and back: everything a run needs to go on exactly.

Masks, data order and augmentation are functions of (seed, pass, index), so there is no random state to keep.
"""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from discriminators import Augmentation
from discriminators.penalties import LeCam, PathLength
from perceptual_mae.run import checkpoint
from perceptual_mae.training.adversary import Adversary
from perceptual_mae.training.trainer import Trainer


def state_dict(trainer: Trainer, accelerator: Accelerator) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return a trainer's tensors by group and its metadata, as `checkpoint.save` takes them."""
    tensors = {
        "generator": trainer.unwrapped_generator.state_dict(),
        "optimizer": checkpoint.optimizer_tensors(trainer.optimizer),
        "balance": trainer.objective.balance.state_dict(),
    }
    if trainer.ema is not None:
        tensors["generator_ema"] = trainer.ema.module.state_dict()
    if trainer.adversary is not None:
        tensors["discriminator"] = trainer.unwrapped_discriminator.state_dict()
        tensors["discriminator_optimizer"] = checkpoint.optimizer_tensors(trainer.discriminator_optimizer)
        tensors |= {name: owner.state_dict() for name, owner in adaptive_parts(trainer.adversary).items()}
    if trainer.networks.copies:
        tensors["loss_networks"] = trainer.networks.copies.state_dict()
    metadata = {
        "ema_updates": int(trainer.ema.n_averaged) if trainer.ema is not None else 0,
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
    }
    return tensors, metadata


def groups(trainer: Trainer, accelerator: Accelerator) -> set[str]:
    """Return the groups of tensors that a checkpoint must have for this trainer to go on from it."""
    return set(state_dict(trainer, accelerator)[0])


def load_state_dict(trainer: Trainer, accelerator: Accelerator, path: Path) -> dict[str, Any]:
    """Put a trainer back to a checkpoint and return the checkpoint's metadata; UserError where it lacks a part."""
    checkpoint.load_module(trainer.unwrapped_generator, checkpoint.load_tensors(path, "generator"), path)
    checkpoint.load_optimizer(trainer.optimizer, checkpoint.load_tensors(path, "optimizer"))
    balance = checkpoint.load_tensors(path, "balance")
    trainer.objective.balance.load_state_dict({key: value.to(accelerator.device) for key, value in balance.items()})
    metadata = checkpoint.load_metadata(path)
    if trainer.ema is not None:
        checkpoint.load_module(trainer.ema.module, checkpoint.load_tensors(path, "generator_ema"), path)
        trainer.ema.n_averaged.fill_(metadata["ema_updates"])
    if trainer.adversary is not None:
        checkpoint.load_module(trainer.unwrapped_discriminator, checkpoint.load_tensors(path, "discriminator"), path)
        moments = checkpoint.load_tensors(path, "discriminator_optimizer")
        checkpoint.load_optimizer(trainer.discriminator_optimizer, moments)
        for name, owner in adaptive_parts(trainer.adversary).items():
            owner.load_state_dict(checkpoint.load_tensors(path, name))
    if trainer.networks.copies:
        checkpoint.load_module(trainer.networks.copies, checkpoint.load_tensors(path, "loss_networks"), path)
    if accelerator.scaler is not None and metadata["scaler"]:
        accelerator.scaler.load_state_dict(metadata["scaler"])
    return metadata


def adaptive_parts(adversary: Adversary) -> dict[str, Augmentation | LeCam | PathLength]:
    """Return what of an adversary adapts while it trains, by its group in a checkpoint."""
    owners = {"augmentation": adversary.augmentation, "lecam": adversary.lecam, "path_length": adversary.path_length}
    return {name: owner for name, owner in owners.items() if owner is not None and owner.state_dict()}
