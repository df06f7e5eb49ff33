"""Write docs/configuration.md, docs/metrics.md and docs/transfer_keys.md from the schema and the code.

    uv run python scripts/make_references.py

Meanings and sources of keys stand in the docstrings of the classes and functions whose options they are; those of
metrics.jsonl next to the code that writes it. A test fails where the pages are not what this script writes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from perceptual_mae.config.all_keys import models_of_places
from perceptual_mae.config.errors import describe, fields_of, show
from perceptual_mae.config.from_signature import derive, first_line, meaning_of
from perceptual_mae.config.layers import BASE
from perceptual_mae.config.schema import RunConfig, TermSection
from perceptual_mae.config.training_sections import PenaltySection
from perceptual_mae.data.pixel_cache import PixelCache
from perceptual_mae.data.shard_cache import ShardCache
from perceptual_mae.schedules import Balanced, Every, FromEpoch, Ramp
from perceptual_mae.training.metrics import METRICS_KEYS
from perceptual_mae.transfer.detection.config import DetectConfig
from perceptual_mae.transfer.segmentation.config import SEGMENT_OPTIONS, SegmentConfig
from perceptual_mae.transfer.training import TRANSFER_METRICS

DOCS = Path(__file__).parents[1] / "docs"
GENERATED = "<!-- Written by scripts/make_references.py: change the docstrings, not this page. -->"
HEADER = ("key", "values", "default", "meaning", "default from")

CONFIGURATION = """# Configuration

Every key of a configuration file, from the schema. Files and `key=value` overrides are merged from left to right over
the defaults; `pmae configs LAYER...` prints what they resolve to, with the meaning of each key. `pmae explain LAYER...`
says of each what set it, whose value it is and what the paper has; `pmae explain KEY` shows one key, and every shipped
layer that sets it.

`default from` names whose the default is: **paper** (Perceptual MAE), **MAE** (He et al. 2022), **ours**, the title of
another text, or **none** where the default means "off" or "not given". Where a recipe or a method sets another
value, its file says whose that one is.

What a run is before any layer: the sections below, with `discriminator: {kind: ls_gan}` and the losses of LS-GAN-P.
"""

VALUES = """## Values of `weight`, `when`, `masking.ratio`, `data.cache` and `data.shard_cache`

A weight is a number, a ramp or a balance; a masking ratio is a number or a ramp; `when` is `always`, `even_epochs`,
`odd_epochs`, `{from_epoch: n}`, `{from_share: x}` or `{every: n}`.
"""

METRICS = """# metrics.jsonl

One JSON object a line, at every `training.log_every`-th step and at the end of each epoch; scores of held-out images
have lines of their own. Scalars are means over the steps since the last line that report them, over all processes.
`a/b` is key `b` in the mapping `a`; TERM, PLACE, NETWORK, SCORE and FILLING stand for names. `pmae curves` draws them,
as `a.b`.
"""


TRANSFER_KEYS = """# Keys of dense transfer

Every key of a recipe of [dense transfer](transfer.md), from the schema. A recipe is a YAML file of `configs/transfer`,
or one of your own; `key=value` behind it wins. In brackets, and under `default from`, is whose the default is; where a
recipe sets another value, its file says whose that one is.
"""

METRICS_OF_TRANSFER = """NAME_seed_N.metrics.jsonl has one JSON object a line, at every `training.log_every`-th step
and the last, and lines of their own for held-out scores. TERM and SCORE stand for names.
"""

TRANSFER: Mapping[str, tuple[Any, Any]] = {"detect": (DetectConfig, {}), "segment": (SegmentConfig, SEGMENT_OPTIONS)}


def configuration_page() -> str:
    """Return docs/configuration.md."""
    lines = [GENERATED, "", CONFIGURATION]
    lines += [*_table({"": RunConfig}, shared=()), ""]
    for place, models in models_of_places().items():
        if place:
            lines += [*_place(place, models), ""]
    lines += [VALUES]
    for form in (Ramp, Balanced, FromEpoch, Every, PixelCache, ShardCache):
        lines += [first_line(form), "", *_rows(HEADER, [_row(name, field) for name, field in fields_of(form).items()])]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def metrics_page() -> str:
    """Return docs/metrics.md."""
    rows = []
    for pattern, text in METRICS_KEYS.items():
        meaning, values = _split_range(text)
        rows.append((f"`{pattern}`", meaning, values))
    return "\n".join([GENERATED, "", METRICS, *_rows(("key", "meaning, and when it is there", "range"), rows)]) + "\n"


def transfer_keys_page() -> str:
    """Return docs/transfer_keys.md."""
    lines = [GENERATED, "", TRANSFER_KEYS]
    for command, (config, options) in TRANSFER.items():
        lines += [f"## `pmae {command}`", ""]
        for section, field in fields_of(config).items():
            meaning, source = meaning_of(field)
            lines += [f"### `{command}`: `{section}`", "", f"{meaning[0].upper()}{meaning[1:]} [{source}].", ""]
            models = {"": field.annotation}
            if section in options:
                base, table = options[section]
                models = {kind: derive(base, target, kind or None) for kind, target in table.items()}
            for kind, model in models.items():
                lines += [f"**`kind: {kind}`**", ""] if kind else []
                lines += [*_table({kind: model}, shared=("kind",) if kind else ()), ""]
    lines += ["## The records of a training", "", METRICS_OF_TRANSFER]
    rows = [(f"`{key}`", *_split_range(text)) for key, text in TRANSFER_METRICS.items()]
    return "\n".join([*lines, *_rows(("key", "meaning, and when it is there", "range"), rows)]) + "\n"


def write(folder: Path = DOCS) -> None:
    """Write all pages."""
    (folder / "transfer_keys.md").write_text(transfer_keys_page())
    (folder / "configuration.md").write_text(configuration_page())
    (folder / "metrics.md").write_text(metrics_page())


def _place(place: str, models: Mapping[str, type[BaseModel]]) -> Iterator[str]:
    """Yield the lines of a section: the keys of all its kinds, then those of each."""
    first = next(iter(models.values()))
    base = first.__base__ or first
    yield from (f"## `{place}`", "")
    if "" in models and issubclass(first, TermSection | PenaltySection):
        yield from (first_line(first), "")
    elif "" not in models and place in BASE:
        yield from (f"{first_line(base)} Where none is named, the kind is `{BASE[place]['kind']}`.", "")
    else:
        yield from (first_line(base if "" not in models else first), "")
    if "" in models:
        yield from _table(models, shared=())
        return
    shared = [name for name in fields_of(base) if name != "kind"]
    kinds = ", ".join(f"`{kind}`" for kind in models)
    kind_meaning, source = meaning_of(fields_of(base)["kind"])
    rows = [("`kind`", f"{kinds}, or your own `package.module:Class`", "", kind_meaning, source)]
    rows += [_row(name, fields_of(first)[name]) for name in shared]
    yield from _rows(HEADER, rows)
    for kind, model in models.items():
        yield from ("", f"**`kind: {kind}`** {meaning_of(fields_of(model)['kind'])[0]}.".replace("<", "&lt;"))
        own = {name for name in fields_of(model) if name not in (*shared, "kind")}
        if own:
            yield ""
            yield from _table({kind: model}, shared=(*shared, "kind"))


def _table(models: Mapping[str, type[BaseModel]], shared: Sequence[str]) -> list[str]:
    (model,) = models.values()
    return _rows(HEADER, [_row(name, field) for name, field in fields_of(model).items() if name not in shared])


def _row(name: str, field: FieldInfo) -> tuple[str, ...]:
    meaning, source = meaning_of(field)
    default: object = None if field.is_required() else field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        text = "see below"
    elif name in RunConfig.model_fields:
        text = "" if default is not None else "`null`"
    else:
        text = (
            "required" if field.is_required() else f"`{default if isinstance(default, str) else show(_plain(default))}`"
        )
    values = "see below" if _is_section(field) else describe(field.annotation, field.metadata)
    return (f"`{name}`", values, text, meaning, source)


def _is_section(field: FieldInfo) -> bool:
    return "Section" in str(field.annotation)


def _plain(value: object) -> object:
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _split_range(text: str) -> tuple[str, str]:
    """Return meaning and range: the latter stands in brackets at the end."""
    stated = re.fullmatch(r"(.*?) ([\[(][^\[\]()]*, [^\[\]()]*[\])])", text)
    return (stated[1], stated[2]) if stated else (text, "")


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [
        header,
        ["---"] * len(header),
        *([cell.replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows),
    ]
    return [f"| {' | '.join(row)} |" for row in cells]


if __name__ == "__main__":
    write()
