"""Alarms in words: a GAN can train with every loss finite and learn nothing.

Each alarm checks the mean of a scalar over many observations, speaks once per spell, and names the key to change. It is
the mean because single batches scatter: a discriminator at chance is right on most of a small batch now and then.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from perceptual_mae.losses import TERMS

DOMINANCE_WINDOW = 8
"""Measurements of all terms' gradients; there is one about every training.log_every steps."""


@dataclass(frozen=True)
class Alarm:
    """Fires when `is_bad` holds for the mean of `keys` over `window` observations, and did not before."""

    keys: tuple[str, ...]
    is_bad: Callable[[float], bool]
    window: int
    message: str


def _dominates(term: str, place: str, where: str, consequence: str, weight: str) -> Alarm:
    """A term's gradient exceeds those of all others together at one place."""
    return Alarm(
        (f"gradient_share/{place}/{term}",),
        lambda share: share > 0.5,
        DOMINANCE_WINDOW,
        f"the {term} gradient {where} has exceeded those of all other terms together over {DOMINANCE_WINDOW} "
        f"measurements: {consequence}; lower losses.{term}.weight, or set it to {weight}",
    )


def _dominates_input(term: str) -> Alarm:
    """At the decoder's input, where all heads join."""
    consequence = "the generator may come to ignore its input"
    return _dominates(term, "decoder", "at the decoder's input", consequence, "{balanced: 0.2}")


def _dominates_weights(term: str) -> Alarm:
    """In the decoder's weights, which are what the optimiser moves: gradients of images add up or cancel there."""
    consequence = "it is what mostly moves the decoder"
    return _dominates(term, "decoder_weights", "in the decoder's weights", consequence, "{balanced: 0.2, at: decoder}")


ALARMS: dict[str, Alarm] = {
    "discriminator_wins": Alarm(
        ("discriminator/accuracy_real", "discriminator/accuracy_fake"),
        lambda accuracy: accuracy > 0.98,
        200,
        "the discriminator has been right on more than 98% of the images for 200 steps: the generator learns little "
        "from it; lower losses.adversarial.weight or optimizer.discriminator.lr",
    ),
    "discriminator_collapses": Alarm(
        ("discriminator/accuracy_real", "discriminator/accuracy_fake"),
        lambda accuracy: accuracy < 0.52,
        200,
        "the discriminator has classified real and fake no better than by chance for 200 steps: the generator learns "
        "nothing from it; raise optimizer.discriminator.lr, or lower penalties.r1.gamma or augment.p_max",
    ),
    # The pixel terms are what the others are measured by.
    **{f"{term}_dominates": _dominates_input(term) for term, line in TERMS.items() if line.compares_images},
    **{f"{term}_dominates_weights": _dominates_weights(term) for term, line in TERMS.items() if line.compares_images},
    "mode_collapse": Alarm(
        ("variety",),
        lambda diversity: diversity < 0.2,
        25,
        "reconstructions of different images hardly differ: the generator ignores its input; lower "
        "losses.adversarial.weight (or set it to {balanced: 0.1}) and look at images/ of the run",
    ),
}


_RENAMED = {"one_answer": "mode_collapse"}


class GanMonitor:
    """For every alarm, the observations of the window that is open, and whether the last one was bad."""

    def __init__(self) -> None:
        self._windows: dict[str, list[float]] = {name: [] for name in ALARMS}
        self._is_bad = dict.fromkeys(ALARMS, False)

    def observe(self, scalars: Mapping[str, float]) -> list[str]:
        """Take in one step's scalars and return the messages of the alarms that have just fired."""
        fired = []
        for name, alarm in ALARMS.items():
            if any(key not in scalars for key in alarm.keys):
                continue
            window = self._windows[name]
            window.append(sum(scalars[key] for key in alarm.keys) / len(alarm.keys))
            if len(window) == alarm.window:
                was_bad, self._is_bad[name] = self._is_bad[name], alarm.is_bad(sum(window) / len(window))
                if self._is_bad[name] and not was_bad:
                    fired.append(alarm.message)
                window.clear()
        return fired

    def state_dict(self) -> dict[str, Any]:
        return {"windows": self._windows, "is_bad": self._is_bad}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that `state_dict` returned, of version 0.1 too, which had other names for two alarms."""
        for own, saved in ((self._windows, state["windows"]), (self._is_bad, state["is_bad"])):
            renamed = {_RENAMED.get(name, name.replace("_drowns", "_dominates")): each for name, each in saved.items()}
            own |= {name: each for name, each in renamed.items() if name in ALARMS}
