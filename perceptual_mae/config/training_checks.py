"""Which settings of training do not fit each other; `validation` lists these checks with the others."""

from collections.abc import Iterator

from perceptual_mae.config.mistake import Mistake
from perceptual_mae.config.schema import RunConfig
from perceptual_mae.schedules import range_of


def check_optimisation(config: RunConfig) -> Iterator[Mistake]:
    optimizer, schedule, training = config.optimizer, config.schedule, config.training
    if optimizer.lr is not None and optimizer.base_lr is not None:
        message = f"both base_lr {optimizer.base_lr} and lr {optimizer.lr} are set; set one of them to null"
        yield Mistake(("optimizer.base_lr", "optimizer.lr"), message)
    peak = optimizer.lr if optimizer.lr is not None else (optimizer.base_lr or 0) * training.batch_size / 256
    if schedule.min_lr > peak:
        rates = ("schedule.min_lr", "optimizer.lr", "optimizer.base_lr", "training.batch_size")
        yield Mistake(rates, f"min_lr {schedule.min_lr:g} is above the peak learning rate {peak:g}; lower it")
    if schedule.warmup_epochs is not None and schedule.warmup_ratio is not None:
        keys = ("schedule.warmup_ratio", "schedule.warmup_epochs")
        yield Mistake(keys, "both warmup_ratio and warmup_epochs are set; set one of them to null")
    elif schedule.warmup_epochs is not None and schedule.warmup_epochs > training.epochs:
        yield Mistake(
            ("schedule.warmup_epochs", "training.epochs"),
            f"a warm-up of {schedule.warmup_epochs:g} epochs is longer than the run of {training.epochs}; "
            "shorten it or set schedule.warmup_ratio",
        )
    if training.batch_size % training.accumulation:
        yield Mistake(
            ("training.accumulation", "training.batch_size"),
            f"batch_size {training.batch_size} cannot be divided into {training.accumulation} equal micro-batches",
        )
    if training.epoch_images is not None and training.epoch_images < training.batch_size:
        yield Mistake(
            ("training.epoch_images", "training.batch_size"),
            f"an epoch of {training.epoch_images} images is less than one batch of {training.batch_size}",
        )


def check_step_device(config: RunConfig) -> Iterator[Mistake]:
    """CUDA graphs are recorded of compiled networks, for one number of visible patches."""
    if not config.training.cuda_graphs:
        return
    keys, (low, high) = ("training.cuda_graphs", "training.compile"), range_of(config.masking.ratio)
    if config.training.compile == "off":
        yield Mistake(keys, "cuda_graphs records compiled networks, but compile is off; set training.compile=all")
    elif config.training.compile == "all" and low != high:
        message = f"cuda_graphs needs a constant number of visible patches, but masking.ratio goes from {low:g} to "
        yield Mistake((*keys, "masking.ratio"), message + f"{high:g}; set training.compile=discriminator")
