"""A new run that goes on from a checkpoint of another one, with other values of its configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from perceptual_mae.config.from_signature import refuse_untrusted
from perceptual_mae.config.layers import Merged, read_yaml
from perceptual_mae.config.own_kinds import EVERYTHING, Trust
from perceptual_mae.config.parsing import RunConfig, parse_config
from perceptual_mae.errors import UserError
from perceptual_mae.pretrained_weights.registry import sha256_of
from perceptual_mae.run import checkpoint
from perceptual_mae.run.folder import CONFIG, changes, read_config
from perceptual_mae.training.trainer import Trainer
from perceptual_mae.training.trainer_state import adaptive_parts

FREEZE = "generator.freeze_encoder"
STARTS = ("generator.init_from", "generator.init_parts", "generator.init_decoder", "discriminator.init_from")


@dataclass
class Branch:
    """A whole checkpoint of a run, what a new run changes of its configuration, and, once loaded, what was not kept.

    changed: dotted keys with the values before and after.
    """

    checkpoint: Path
    changed: Mapping[str, Sequence[Any]]
    not_kept: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.checkpoint.parent.parent

    def metadata(self) -> dict[str, Any]:
        """Return what the new run stands on, for environment.json."""
        return {
            "path": str(self.checkpoint.resolve()),
            "step": checkpoint.step_of(self.checkpoint),
            "sha256": sha256_of(self.checkpoint / "generator.safetensors"),
            "changed": {key: list(values) for key, values in self.changed.items()},
            "not_kept": self.not_kept,
        }

    def __str__(self) -> str:
        lost = f"; not kept: {'; '.join(self.not_kept)}" if self.not_kept else ""
        return f"goes on from {self.checkpoint} with {in_words(self.changed)}{lost}"

    def load(self, trainer: Trainer, accelerator: Accelerator, config: RunConfig) -> tuple[dict[str, Any], int]:
        """Put a trainer where the checkpoint was, in all that it has a place for; return its metadata and the step.

        Steps are counted in images: with another `training.batch_size` the step is that of as many images. Raises
        UserError where the generator is another one.
        """
        metadata = checkpoint.load_metadata(self.checkpoint)
        self._load_generator(trainer, metadata)
        trainer.objective.balance.load_state_dict(
            {key: value.to(accelerator.device) for key, value in (self._tensors("balance") or {}).items()}
        )
        self._load_discriminator(trainer)
        copies = trainer.networks.copies
        if copies and not self._load_network(copies, "loss_networks"):
            self.not_kept.append("copies of the discriminator (they follow it anew)")
        if accelerator.scaler is not None and metadata.get("scaler"):
            accelerator.scaler.load_state_dict(metadata["scaler"])
        step, batch_size = metadata["images_seen"] // config.training.batch_size, config.training.batch_size
        if "training.batch_size" in self.changed:
            self.not_kept.append(f"step {metadata['step']} (it is step {step} of {batch_size} images)")
        if any(key.startswith(("optimizer.", "training.rollback_lr")) for key in self.changed):
            metadata = {**metadata, "divergence": {}}  # the rate is what is asked for now
        return metadata, step

    def _tensors(self, name: str) -> dict[str, Tensor] | None:
        return checkpoint.load_tensors(self.checkpoint, name) if checkpoint.has_group(self.checkpoint, name) else None

    def _load_network(self, network: nn.Module, name: str) -> bool:
        """Load a network where the checkpoint holds one of its architecture."""
        state = self._tensors(name)
        if state is None or checkpoint.state_dict_mismatch(network, state):
            return False
        network.load_state_dict(state)
        return True

    def _load_generator(self, trainer: Trainer, metadata: Mapping[str, Any]) -> None:
        if not self._load_network(trainer.unwrapped_generator, "generator"):
            keys = [key for key in self.changed if key.startswith(("generator.", "data.image_size", "data.mean"))]
            raise UserError(
                f"{self.checkpoint}: its generator has another architecture than {', '.join(keys) or 'generator'} asks "
                "for; leave that as it was, or start a new run with generator.init_from"
            )
        if FREEZE in self.changed or not self._load_optimizer(trainer.optimizer, "optimizer"):
            self.not_kept.append("moments of the generator's optimiser")
        if trainer.ema is not None and self._load_network(trainer.ema.module, "generator_ema"):
            trainer.ema.n_averaged.fill_(metadata["ema_updates"])
        elif trainer.ema is not None:
            trainer.ema.module.load_state_dict(trainer.unwrapped_generator.state_dict())
            self.not_kept.append("no averaged weights were kept before: the average begins here")
        elif self._tensors("generator_ema") is not None:
            self.not_kept.append("averaged weights (training.ema_kimg is null)")

    def _load_discriminator(self, trainer: Trainer) -> None:
        adversary = trainer.adversary
        if adversary is None:
            self.not_kept += ["the discriminator"] * (self._tensors("discriminator") is not None)
            return
        if not self._load_network(trainer.unwrapped_discriminator, "discriminator"):
            self.not_kept.append("the discriminator (it begins anew)")
            return
        if not self._load_optimizer(trainer.discriminator_optimizer, "discriminator_optimizer"):
            self.not_kept.append("moments of the discriminator's optimiser")
        for name, owner in adaptive_parts(adversary).items():
            state = self._tensors(name)
            if state is not None and state.keys() == owner.state_dict().keys():
                owner.load_state_dict(state)
            else:
                self.not_kept.append(f"state of {name} (it begins anew)")

    def _load_optimizer(self, optimizer: Optimizer, name: str) -> bool:
        """Load moments where they are those of the optimiser's parameters, one by one."""
        tensors = self._tensors(name)
        if not tensors:
            return False
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        for key, value in tensors.items():
            index = int(key.partition(".")[0])
            if index >= len(parameters) or (value.ndim and value.shape != parameters[index].shape):
                return False
        checkpoint.load_optimizer(optimizer, tensors)
        return True


def in_words(changed: Mapping[str, Sequence[Any]]) -> str:
    """Return changed keys as `key before -> after`."""
    return ", ".join(f"{key} {before} -> {after}" for key, (before, after) in changed.items()) or "the same values"


def open_branch(
    source: Path, step: str, overrides: Sequence[str], out: Path, *, trust_code: bool = False
) -> tuple[RunConfig, Branch]:
    """Return the configuration of a branch of the run `source`, to be written to `out`, and where it begins.

    step: the steps in the name of one of its checkpoints, or `newest`. trust_code: import classes of somebody's own
    that the run's folder names. Raises UserError.
    """
    if not (source / CONFIG).exists():
        raise UserError(f"{source}: is not a run folder; --from-checkpoint needs one, such as runs/a")
    if layers := [override for override in overrides if "=" not in override]:
        raise UserError(
            f"{layers[0]}: a branch keeps the run's configuration but for overrides such as optimizer.lr=1e-4"
        )
    if out.resolve() == source.resolve():
        raise UserError(f"--out: {out} is the run itself; a branch needs a folder of its own")
    merged = Merged()
    merged.start_from(read_yaml(source / CONFIG))
    for override in overrides:
        merged.override(override)
    trust = EVERYTHING if trust_code else Trust(merged.typed_kinds)
    config = parse_config(merged.values, merged.origins, origin=str(source / CONFIG), trust=trust)
    refuse_untrusted(config)
    changed = changes(read_config(source, trust_code=trust_code), config)
    if starts := [key for key in STARTS if changed.get(key, [None])[-1]]:
        raise UserError(f"{starts[0]}: a branch has the networks of its checkpoint; start a new run with other weights")
    return config, Branch(find_checkpoint(source, step), changed)


def find_checkpoint(source: Path, step: str) -> Path:
    """Return a run's whole checkpoint of a step; raises UserError, which names those that there are."""
    folder = source / "checkpoints"
    if step == "newest":
        if (newest := checkpoint.newest(folder)) is None:
            raise UserError(f"{source}: holds no checkpoint yet; let the run go on until it has saved one")
        return newest
    known = {str(checkpoint.step_of(path)): path for path in checkpoint.checkpoints(folder)}
    if step.lstrip("0") not in known:
        steps = ", ".join(known) or "none"
        raise UserError(f"--from-checkpoint {step}: {source} has checkpoints of steps {steps}; name one, or newest")
    path = known[step.lstrip("0")]
    if flaw := checkpoint.corruption(path):
        raise UserError(f"{path}: is not a whole checkpoint: {flaw}; name another with --from-checkpoint")
    return path
