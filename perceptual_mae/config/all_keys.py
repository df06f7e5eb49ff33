"""Every place of a configuration with its keys: for the cached table of keys, the reference and the tests."""

from collections.abc import Mapping

from pydantic import BaseModel

from discriminators import AUGMENTATIONS, DISCRIMINATORS, PENALTIES
from perceptual_mae.config.errors import fields_of, fixed_kind, inner_keys
from perceptual_mae.config.from_signature import Choice, derive
from perceptual_mae.config.frozen_networks import DEFAULT_FROZEN, FROZEN_NETWORKS, FrozenNetworkSection
from perceptual_mae.config.known_keys import Keys, Table
from perceptual_mae.config.layers import BASE
from perceptual_mae.config.parsing import keys_of_sections
from perceptual_mae.config.schema import (
    DEFAULT_AUGMENTATION,
    DataSection,
    DiscriminatorSection,
    FeatureTermSection,
    GeneratorSection,
    LossNetworkSection,
    MaskingSection,
    RunConfig,
    term_model,
)
from perceptual_mae.config.training_sections import (
    AugmentSection,
    DiscriminatorOptimizerSection,
    EvaluationSection,
    OptimizerSection,
    PenaltySection,
    ScheduleSection,
    TrackingSection,
    TrainingSection,
)
from perceptual_mae.data import DATASETS
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.loss_networks import LIVE, LOSS_NETWORKS
from perceptual_mae.losses import TERMS
from perceptual_mae.masking import MASKINGS

Models = dict[str, type[BaseModel]]

ENTRIES: dict[str, tuple[str, Mapping[str, object]]] = {
    "losses": ("loss term", TERMS),
    "penalties": ("penalty", PENALTIES),
}


def models_of_places() -> dict[str, Models]:
    """Return the models of every place but `losses` and `penalties` themselves, by kind ("" where it has none)."""

    def kinds(base: type[Choice], table: Mapping[str, object]) -> Models:
        return {kind: derive(base, target, kind) for kind, target in table.items() if callable(target)}

    return {
        "": {"": RunConfig},
        "data": kinds(DataSection, DATASETS),
        "masking": kinds(MaskingSection, MASKINGS),
        "generator": {"": derive(GeneratorSection, MaskedAutoencoder)},
        "discriminator": kinds(DiscriminatorSection, DISCRIMINATORS),
        "discriminator.network": kinds(FrozenNetworkSection, FROZEN_NETWORKS),
        "augment": kinds(AugmentSection, AUGMENTATIONS),
        **{f"losses.{name}": {"": term_model(name)} for name in TERMS},
        **{
            f"losses.{name}.network": kinds(LossNetworkSection, LOSS_NETWORKS)
            for name in TERMS
            if issubclass(term_model(name), FeatureTermSection)
        },
        **{f"penalties.{name}": {"": derive(PenaltySection, kind)} for name, kind in PENALTIES.items()},
        "optimizer": {"": OptimizerSection},
        "optimizer.discriminator": {"": DiscriminatorOptimizerSection},
        "schedule": {"": ScheduleSection},
        "training": {"": TrainingSection},
        "evaluation": {"": EvaluationSection},
        "tracking": {"": TrackingSection},
    }


def key_table() -> Table:
    """Return the keys of every place, as plain values that can be cached."""
    places = {
        place: {
            kind: Keys(list(fields_of(model)), fixed_kind(model), inner_keys(model)) for kind, model in models.items()
        }
        for place, models in models_of_places().items()
    }
    places |= {section: {"": Keys(list(table), None, {})} for section, (_, table) in ENTRIES.items()}
    defaults = {place: BASE[place]["kind"] for place in ("data", "masking", "discriminator")}
    defaults |= {"augment": DEFAULT_AUGMENTATION}
    defaults |= {place: LIVE for place in places if place.endswith(".network")}
    defaults |= {"discriminator.network": DEFAULT_FROZEN}
    return Table(places, defaults, {section: what for section, (what, _) in ENTRIES.items()}, keys_of_sections())
