"""Alarms in words: a GAN can train with every loss finite and learn nothing.

Each alarm watches one scalar, fires when it has been out of bounds for many observations in a row, once per spell, and
names the key to change.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Scalars = Mapping[str, float]


@dataclass(frozen=True)
class Alarm:
    """Fires after `patience` observations in a row at which `is_bad` holds for the scalar `watches`."""

    watches: tuple[str, ...]
    is_bad: Callable[[tuple[float, ...]], bool]
    patience: int
    message: str


ALARMS = {
    "discriminator_wins": Alarm(
        ("discriminator/accuracy_real", "discriminator/accuracy_fake"),
        lambda seen: sum(seen) / len(seen) > 0.98,
        200,
        "the discriminator has been right on more than 98% of the images for 200 steps: the generator learns little "
        "from it; lower losses.adversarial.weight or optimizer.discriminator.lr",
    ),
    "adversarial_drowns": Alarm(
        ("gradient_share/adversarial",),
        lambda seen: seen[0] > 1,
        100,
        "the adversarial gradient at the decoder's input has exceeded L1's in 100 measurements in a row: the generator "
        "may stop looking at its input; lower losses.adversarial.weight, or set it to {balanced: 0.1}",
    ),
    "style_drowns": Alarm(
        ("gradient_share/style",),
        lambda seen: seen[0] > 1,
        100,
        "the style gradient at the decoder's input has exceeded L1's in 100 measurements in a row; lower "
        "losses.style.weight, or set it to {balanced: 0.2}",
    ),
    "one_answer": Alarm(
        ("variety",),
        lambda seen: seen[0] < 0.2,
        25,
        "reconstructions of different images hardly differ: the generator has stopped looking at its input; lower "
        "losses.adversarial.weight (or set it to {balanced: 0.1}) and look at images/ of the run",
    ),
}


class Health:
    """Counts, for every alarm, the observations in a row that were out of bounds."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(ALARMS, 0)

    def observe(self, scalars: Scalars) -> list[str]:
        """Take in one step's scalars and return the messages of the alarms that have just fired."""
        fired = []
        for name, alarm in ALARMS.items():
            if any(key not in scalars for key in alarm.watches):
                continue
            is_bad = alarm.is_bad(tuple(scalars[key] for key in alarm.watches))
            self.counts[name] = self.counts[name] + 1 if is_bad else 0
            if self.counts[name] == alarm.patience:
                fired.append(alarm.message)
        return fired
