"""Every key of a configuration has a meaning and says whose its default is."""

import inspect

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from discriminators import AUGMENTATIONS, DISCRIMINATORS, PENALTIES
from perceptual_mae.config.all_keys import models_of_places
from perceptual_mae.config.errors import fields_of
from perceptual_mae.config.from_signature import Choice, Options, derive, first_line, meaning_of, option_docs
from perceptual_mae.config.parsing import json_schema
from perceptual_mae.data import DATASETS
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.loss_networks import LOSS_NETWORKS
from perceptual_mae.losses import TERMS
from perceptual_mae.masking import MASKINGS
from perceptual_mae.schedules import Balanced, Every, FromEpoch, Ramp

TARGETS = [
    MaskedAutoencoder,
    *DATASETS.values(),
    *MASKINGS.values(),
    *DISCRIMINATORS.values(),
    *AUGMENTATIONS.values(),
    *PENALTIES.values(),
    *(term.function for term in TERMS.values()),
    *LOSS_NETWORKS.values(),
]
LONGEST = 220


def all_fields() -> list[tuple[str, FieldInfo]]:
    models: list[tuple[str, type[BaseModel]]] = [
        (f"{place}({kind})", model) for place, kinds in models_of_places().items() for kind, model in kinds.items()
    ]
    models += [(model.__name__, model) for model in (Ramp, Balanced, FromEpoch, Every)]
    return [(f"{place}.{name}", field) for place, model in models for name, field in fields_of(model).items()]


def test_every_key_has_a_meaning_and_a_source_of_its_default() -> None:
    fields = all_fields()
    assert len(fields) > 150
    assert [key for key, field in fields if not all(meaning_of(field))] == []
    assert [key for key, field in fields if len(meaning_of(field)[0]) > LONGEST] == []


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_the_block_of_options_names_those_of_the_signature_in_order(target: object) -> None:
    function = target.__init__ if inspect.isclass(target) else target
    assert callable(function)
    parameters = inspect.signature(function).parameters.values()
    assert list(option_docs(target)) == [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    assert first_line(target).endswith(".")


class Brush:
    """Paints.

    Options:
        width: width of a stroke, in pixels;
            0 paints nothing [ours]
        size: of the canvas [A Text, 2020]

    Raises ValueError: never.
    """

    def __init__(self, canvas: object, *, width: int = 3, size: int = 1, plain: int = 0) -> None: ...


class ToolSection(Choice):
    """A tool.

    Options:
        kind: which tool [paper]
        strength: how hard it presses [none]
    """

    strength: float = 1.0

    def size(self) -> None: ...


def test_meanings_are_read_from_the_docstring_with_lines_that_go_on() -> None:
    assert option_docs(Brush) == {
        "width": "width of a stroke, in pixels; 0 paints nothing [ours]",
        "size": "of the canvas [A Text, 2020]",
    }
    fields = fields_of(derive(ToolSection, Brush, "brush"))
    assert meaning_of(fields["width"]) == ("width of a stroke, in pixels; 0 paints nothing", "ours")
    assert meaning_of(fields["size"]) == ("of the canvas", "A Text, 2020")  # though the section has a method `size`
    assert meaning_of(fields["strength"]) == ("how hard it presses", "none")
    assert meaning_of(fields["kind"]) == ("Paints", "paper")
    assert meaning_of(fields["plain"]) == ("", "")  # a class of the user's own need not say


def test_a_class_without_a_block_has_no_meanings() -> None:
    assert option_docs(Options) == {}
    assert option_docs(lambda: None) == {}


def test_the_schema_for_editors_has_meanings() -> None:
    definitions = json_schema()["$defs"]
    assert definitions["TrainingSection"]["properties"]["epochs"]["description"].startswith("passes over the training")
