"""Sections of a run's configuration: how it is trained, scored and tracked; see `schema` for the others."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, RootModel, SerializeAsAny, model_validator

from discriminators import PENALTIES
from perceptual_mae.config.from_signature import Choice, Options, Section, fill

Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Epochs = Annotated[int, Field(ge=1, le=1_000_000)]
"""Epochs of a run, or between two things that happen in it."""
BatchSize = Annotated[int, Field(ge=1, le=1_000_000)]
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]
Images = Annotated[int, Field(ge=1, le=1_000_000_000)]
Compiled = Literal["off", "discriminator", "all"]
Place = Annotated[str, AfterValidator(lambda path: os.path.abspath(Path(path).expanduser()))]
"""A path, made absolute where it is read: a configuration means the same from any folder."""


class AugmentSection(Choice):
    """Augmentation of all images that the discriminator is shown.

    Options:
        kind: the augmentation [Training GANs with Limited Data]
    """


class PenaltySection(Options):
    """Options of one gradient penalty."""


class PenaltiesSection(RootModel[dict[str, SerializeAsAny[PenaltySection]]]):
    """The gradient penalties by name."""

    model_config = ConfigDict(frozen=True)
    names: ClassVar[Mapping[str, object]] = PENALTIES

    def get(self, name: str) -> PenaltySection | None:
        return self.root.get(name)


class DiscriminatorOptimizerSection(Section):
    """Adam's settings for the discriminator.

    Options:
        lr: learning rate; null: the generator's [paper]
        betas: decay rates of Adam's first and second moment [ours]
        schedule: constant, or follow: the generator's warm-up and cosine, down to 0 [ours]
    """

    lr: Rate | None = 1.5e-4
    betas: tuple[Decay, Decay] = (0.5, 0.999)
    schedule: Literal["constant", "follow"] = "constant"


class OptimizerSection(Section):
    """AdamW's settings for the generator: `lr` itself, or `base_lr` for every 256 images of a batch.

    Options:
        lr: peak learning rate; null: base_lr decides. 1.5e-4 where neither is set [paper]
        base_lr: peak learning rate for every 256 images of a batch; null: lr decides [none]
        betas: decay rates of AdamW's first and second moment [MAE]
        weight_decay: decoupled weight decay of all weights but biases, norms and tokens [MAE]
        clip_norm: largest norm of the generator's gradient; null: not clipped [none]
        discriminator: the discriminator's own optimiser [paper]
    """

    lr: Rate | None = None
    base_lr: Rate | None = None
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.05
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    discriminator: DiscriminatorOptimizerSection = DiscriminatorOptimizerSection()

    _default = model_validator(mode="before")(partial(fill, names=("lr", "base_lr"), default=1.5e-4))


class ScheduleSection(Section):
    """Warm-up, in epochs or as a share of all steps, then half a cosine down to `min_lr`.

    Options:
        warmup_epochs: epochs over which the learning rate rises from 0; null: warmup_ratio decides. 40 where
            neither is set [MAE]
        warmup_ratio: share of all steps over which the learning rate rises from 0; null: warmup_epochs decides [none]
        min_lr: learning rate of the generator at the end of the cosine [MAE]
    """

    warmup_epochs: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    warmup_ratio: Fraction | None = None
    min_lr: Annotated[float, Field(ge=0, le=1000)] = 0.0

    _default = model_validator(mode="before")(partial(fill, names=("warmup_epochs", "warmup_ratio"), default=40.0))


class TrainingSection(Section):
    """How long and how a run trains.

    Options:
        epochs: passes over the training images, or over epoch_images of them [paper]
        batch_size: images of one optimiser step, over all processes and micro-batches [paper]
        accumulation: micro-batches of a step; more need less memory for the same result [ours]
        epoch_images: images of an epoch; null: all training images [none]
        precision: autocast: no (float32), bf16, fp16, or auto: bf16 where the device computes in it, else no [ours]
        seed: seed of all random draws: weights, order, crops, masks, augmentation [ours]
        order: lean: both networks are updated from one forward pass of the generator; sequential: the discriminator
            first, then the generator against the updated one [ours]
        compile: which networks steps run as torch.compile's graphs: off, the discriminator, or all; the first step
            waits minutes for the compiler. Not in steps with R1, R2 or path length, nor where images are scored [ours]
        cuda_graphs: record compiled networks as CUDA graphs, which launch all kernels at once; on a GPU alone, for
            small batches, where the host cannot keep up. Takes more memory [ours]
        tf32: let a GPU round the factors of float32 products and convolutions to TensorFloat-32 in training; null:
            where precision is bf16 or fp16, which leaves style losses and loss networks in float32 [ours]
        cudnn_benchmark: let cuDNN choose convolutions by trial; faster, but two runs may choose differently. Off where
            deterministic kernels are asked of PyTorch [ours]
        checkpoint_activations: keep of each transformer block its input alone for the backward pass, which computes
            the rest again: less memory for a third more time of the generator. Gradients are the same [ours]
        ema_kimg: half-life of the averaged generator, in thousand images; null: no average is kept [none]
        max_skips: steps in a row that are skipped where a loss or gradient is not finite; one more stops the run, or
            takes it back to a checkpoint [ours]
        rollback_lr: factor of the learning rates when the run goes back to its last good checkpoint after max_skips;
            null: it stops [none]
        log_every: steps from one line of metrics.jsonl to the next [ours]
        checkpoint_every: epochs from one checkpoint to the next [ours]
        checkpoint_minutes: minutes from one checkpoint to the next, wherever in an epoch; 0 or null: epochs alone
            decide [ours]
        keep_last: newest checkpoints that are kept [ours]
        keep_every: of older checkpoints, one every so many epochs is kept; null: none is [none]
    """

    epochs: Epochs = 300
    batch_size: BatchSize = 16
    accumulation: BatchSize = 1
    epoch_images: Images | None = None
    precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    seed: Seed = 0
    order: Literal["lean", "sequential"] = "lean"
    compile: Compiled = "off"
    cuda_graphs: bool = False
    tf32: bool | None = None
    cudnn_benchmark: bool = True
    checkpoint_activations: bool = False
    ema_kimg: Annotated[float, Field(gt=0)] | None = None
    max_skips: Annotated[int, Field(ge=0)] = 3
    rollback_lr: Annotated[float, Field(gt=0, lt=1)] | None = None
    log_every: Steps = 50
    checkpoint_every: Epochs = 1
    checkpoint_minutes: Annotated[float, Field(ge=0)] | None = 10.0
    keep_last: Epochs = 2
    keep_every: Epochs | None = None


class EvaluationSection(Section):
    """The held-out score during and after training.

    Options:
        every: epochs from one score and sample grid to the next; 0: at the end alone [ours]
        limit: held-out images that are scored, of a fixed shuffle [ours]
        batch_size: held-out images in one forward pass [ours]
        seed: seed of the held-out images' masks [ours]
        grid_images: held-out images of the sample grid [ours]
        split: which held-out images: val or test [ours]
        probe_images: labelled training images of the probe and kNN that go with a score; 0: neither is fitted [ours]
    """

    every: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    limit: Images = 1000
    batch_size: BatchSize = 100
    seed: Seed = 0
    grid_images: Annotated[int, Field(ge=1, le=1000)] = 8
    split: Literal["val", "test"] = "test"
    probe_images: Annotated[int, Field(ge=0, le=1_000_000_000)] = 2000


class TrackingSection(Section):
    """Trackers that are sent the scalars of metrics.jsonl, too.

    Options:
        trackers: any of tensorboard, wandb, trackio [ours]
        project: name of the project in a tracker [ours]
        run_name: name of the run in a tracker; null: the run folder's [none]
    """

    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    project: str = "perceptual-mae"
    run_name: str | None = None
