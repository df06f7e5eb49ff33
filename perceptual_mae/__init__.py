"""Masked autoencoders trained with perceptual and adversarial losses.

Importing this package is quick and does nothing: each public name loads its module when it is first used.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perceptual_mae.config.parsing import RunConfig, load_config
    from perceptual_mae.errors import UserError
    from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
    from perceptual_mae.generator.reconstruction import Reconstruction
    from perceptual_mae.losses import TERMS
    from perceptual_mae.masking import draw_masks, num_hidden
    from perceptual_mae.objective.objective import Objective, WeightedTerm
    from perceptual_mae.objective.term_inputs import TermInputs
    from perceptual_mae.run.run import Run
    from perceptual_mae.training.adversary import Adversary
    from perceptual_mae.training.loop import pretrain
    from perceptual_mae.training.trainer import Trainer

_MODULES = {
    "Adversary": "training.adversary",
    "TermInputs": "objective.term_inputs",
    "MaskedAutoencoder": "generator.masked_autoencoder",
    "Objective": "objective.objective",
    "Reconstruction": "generator.reconstruction",
    "Run": "run.run",
    "RunConfig": "config.parsing",
    "TERMS": "losses",
    "Trainer": "training.trainer",
    "UserError": "errors",
    "WeightedTerm": "objective.objective",
    "draw_masks": "masking",
    "load_config": "config.parsing",
    "num_hidden": "masking",
    "pretrain": "training.loop",
}

_RENAMED = {"Comparison": "TermInputs"}

__all__ = [
    "TERMS",
    "Adversary",
    "MaskedAutoencoder",
    "Objective",
    "Reconstruction",
    "Run",
    "RunConfig",
    "TermInputs",
    "Trainer",
    "UserError",
    "WeightedTerm",
    "draw_masks",
    "load_config",
    "num_hidden",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(
            f"perceptual_mae.{name} is now {_RENAMED[name]}; the old name goes in the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        name = _RENAMED[name]
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
