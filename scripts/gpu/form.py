"""What all parts of the check are given, and the configurations that they measure."""

import time
from dataclasses import dataclass
from pathlib import Path

from perceptual_mae.config.layers import list_methods
from perceptual_mae.config.parsing import RunConfig, load_config

RANDOM = {
    **dict.fromkeys(("dvae_p", "vgg_p"), ("feature_matching", "style")),
    **dict.fromkeys(("teacher_p", "vqgan_p", "projected_p"), ("feature_matching",)),
}
"""Methods whose loss network has a file of weights; here it is drawn at random: what is checked does not need it."""
SMALL = ("width=48", "depth=2", "heads=3", "decoder_width=32", "decoder_depth=4", "decoder_heads=2")
NARROW = {"msg_gan": ("base_channels=16",), "stylegan2": ("channel_base=256", "max_channels=16")}
FOUR = ("mse", "ls_gan_p", "msg_gan_p", "stylegan2_ada_p")
"""One method without a critic, and the paper's three critics."""


@dataclass(frozen=True)
class Form:
    """The folder of the results, the data, the size, and the time (of `time.monotonic`) at which a part should end."""

    out: Path
    root: Path | None = None
    resnet: Path | None = None
    toy: bool = False
    until: float = float("inf")

    @property
    def seconds_left(self) -> float:
        return self.until - time.monotonic()


def methods() -> list[str]:
    """Return the names of all shipped methods."""
    return [method.name for method in list_methods()]


def words_of(recipe: str, method: str, *, toy: bool, more: tuple[str, ...] = ()) -> list[str]:
    """Return the words of a configuration whose networks need no files; `toy`: of a few thousand weights."""
    words = [recipe, method, *(f"losses.{term}.network.weights=random" for term in RANDOM.get(method, ()))]
    if method == "projected_p":
        words.append("discriminator.network.weights=random")
    if toy:
        words += [f"generator.{word}" for word in SMALL]
        discriminator = load_config(words).discriminator
        kind = discriminator.kind if discriminator is not None else ""
        words += [f"discriminator.{word}" for word in NARROW.get(kind, ())]
    return [*words, "data.workers=0", *more]


def config_of(recipe: str, method: str, *, toy: bool, more: tuple[str, ...] = ()) -> RunConfig:
    """Return the configuration of `words_of`."""
    return load_config(words_of(recipe, method, toy=toy, more=more))
