"""Sections derived from signatures."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel

from perceptual_mae.config.errors import RejectedError
from perceptual_mae.config.from_signature import Choice, Options, Section, choice, derive, options_of
from perceptual_mae.config.own_kinds import EVERYTHING


class Brush:
    """Paints."""

    def __init__(self, canvas: object, *, width: int = 3, color: Literal["red", "blue"] = "red", wet: bool = False):
        self.canvas, self.width, self.color, self.wet = canvas, width, color, wet


def spray(canvas: object, *, angle: float, label: str | None = None) -> tuple[object, float, str | None]:
    return canvas, angle, label


class Sized:
    def __init__(self, *, size: int = 8, ratio: float = 0.5):
        self.size, self.ratio = size, ratio


class ToolSection(Choice):
    strength: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        return (1, 1)


TOOLS = {"brush": Brush, "spray": spray, "sized": Sized}


class Studio(BaseModel):
    tool: Annotated[ToolSection, choice(ToolSection, TOOLS, "tool", "brush")]


def read(**values: object) -> ToolSection:
    return Studio.model_validate({"tool": values}, context=EVERYTHING).tool


def rejected(**values: object) -> list[str]:
    with pytest.raises(RejectedError) as caught:
        choice(ToolSection, TOOLS, "tool", "brush").read(values, EVERYTHING)
    return [f"{mistake.keys[0]}: {mistake.message} ({mistake.suggestion})" for mistake in caught.value.mistakes]


def test_options_are_the_keyword_only_parameters_with_their_defaults():
    section = read(kind="brush", width="5", strength=2)
    assert section.options() == {"width": 5, "color": "red", "wet": False}
    assert section.strength == 2.0
    brush = section.build("canvas")
    assert (brush.canvas, brush.width, brush.color) == ("canvas", 5, "red")


def test_functions_are_chosen_as_classes_are():
    assert read(kind="spray", angle=1).build("canvas") == ("canvas", 1.0, None)


def test_null_removes_what_a_layer_below_said_of_another_kind():
    assert read(kind="spray", angle=1, width=None) == read(kind="spray", angle=1)


def test_null_gives_an_option_its_default_again_where_null_is_no_value_of_it():
    assert read(kind="brush", width=None) == read(kind="brush")
    assert rejected(kind="spray", angle=None) == ["angle: found null, must be a number (None)"]


def test_without_a_kind_the_default_is_meant():
    assert read(width=1).kind == "brush"


def test_equal_values_make_equal_sections():
    assert read(kind="brush") == read()
    assert derive(ToolSection, Brush, "brush") is derive(ToolSection, Brush, "brush")


def test_an_option_may_bear_the_name_of_a_property():
    section = read(kind="sized", size=16)
    assert section.size == (1, 1)
    assert section.options() == {"size": 16, "ratio": 0.5}
    assert section.model_dump(by_alias=True) == {"kind": "sized", "strength": 1.0, "size": 16, "ratio": 0.5}


def test_an_unknown_kind_names_the_known():
    assert rejected(kind="brsh") == [
        "kind: unknown tool 'brsh'; choose from: brush, spray, sized, or your own package.module:Class (brush)"
    ]
    assert "unknown tool 3" in rejected(kind=3)[0]


def test_all_mistakes_of_a_section_come_together():
    assert set(rejected(kind="brush", widht=3, color="bleu", wet=7, strength="x")) == {
        "color: found 'bleu', must be one of red, blue (blue)",
        "wet: found 7, must be true or false (None)",
        "strength: found 'x', must be a number (None)",
        "widht: unknown option of brush (null removes it); allowed: kind, strength, width, color, wet (width)",
    }


def test_a_missing_option_is_reported():
    assert rejected(kind="spray") == ["angle: is missing, must be a number (None)"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), True, [1.0], "many", ".nan"])
def test_numbers_are_finite_and_no_truth_values(value):
    assert rejected(strength=value)[0].startswith("strength: found")


def test_truth_values_are_taken_where_they_are_asked_for():
    assert read(wet=True).options()["wet"] is True
    assert rejected(width=True) == ["width: found true, must be a whole number (None)"]


def test_sections_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        read().strength = 3.0


def test_a_class_of_ones_own_is_named_by_module_and_name(tmp_path, monkeypatch):
    (tmp_path / "my_tools.py").write_text(
        "class Pencil:\n    def __init__(self, canvas, *, hardness: float = 2.0):\n        self.hardness = hardness\n"
        "class Untyped:\n    def __init__(self, *, hardness=2.0): ...\n"
        "class Taken:\n    def __init__(self, *, strength: float = 2.0): ...\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    section = read(kind="my_tools:Pencil", hardness=3)
    assert section.kind == "my_tools:Pencil"
    assert section.build("canvas").hardness == 3.0
    assert "unknown option of my_tools:Pencil" in rejected(kind="my_tools:Pencil", hardnes=3)[0]
    assert "its option hardness has no type" in rejected(kind="my_tools:Untyped")[0]
    assert "rename it" in rejected(kind="my_tools:Taken")[0]
    assert "cannot import tool 'my_tools:Pen'" in rejected(kind="my_tools:Pen")[0]
    assert "cannot import tool 'no_such_module:Pen'" in rejected(kind="no_such_module:Pen")[0]
    assert rejected(kind="my_tools:number")


def test_a_section_without_a_kind_takes_its_options_from_one_class():
    class BrushSection(Options):
        width: int

    class Box(BaseModel):
        brush: Annotated[BrushSection, options_of(BrushSection, Brush)]

    assert Box.model_validate({"brush": {"color": "blue"}}).brush.width == 3


def test_nested_sections_keep_their_own_truth_values():
    class Inner(Section):
        wet: bool = False

    class Outer(Section):
        inner: Inner = Inner()

    assert Outer.model_validate({"inner": {"wet": True}}).inner.wet


def test_the_schema_lists_every_kind_and_option():
    text = str(Studio.model_json_schema())
    assert all(word in text for word in ("'brush'", "'spray'", "'width'", "'angle'", "'color'"))
