"""Kinds of one's own: imported where the user typed them, and checked before they are called."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import DEBUG, debug_config
from perceptual_mae import cli
from perceptual_mae.config.own_kinds import Trust, import_own, import_own_term
from perceptual_mae.config.parsing import load_config, parse_config, to_yaml
from perceptual_mae.errors import UserError
from perceptual_mae.losses import FIELDS, LOGITS, TERMS
from perceptual_mae.objective.term_inputs import TermInputs

MODULE = """
from pathlib import Path
Path("{marker}").touch()

class Images:
    classes = ()
    def __init__(self, split, *, count: int = 3): self.count = count
    def __len__(self): return self.count
    def __getitem__(self, index): raise IndexError

def with_an_option_in_the_wrong_place(split, count=3): ...
def of_anything(*values, **options): ...
def a_loss(fake, real, *, power: float = 1.0): return (fake[0] - real[0]).abs().pow(power).mean()
def of_pixels(pixels): return pixels.mean()
def no_number(fake): return fake[0]
"""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that appears as soon as the module `own_parts` is imported."""
    marker = tmp_path / "imported"
    (tmp_path / "own_parts.py").write_text(MODULE.replace("{marker}", str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_parts", raising=False)
    return marker


def values_with(**data: object) -> dict[str, object]:
    return {"data": {"kind": "own_parts:Images", "image_size": 32, **data}}


def test_what_the_user_names_is_imported_and_read_by_its_signature(marker: Path) -> None:
    config = debug_config("mse", "data={kind: own_parts:Images, count: 5}", "data.size=null", "data.num_images=null")
    assert marker.exists()
    assert config.data.options() == {"count": 5}
    assert len(config.data.build("train")) == 5


@pytest.mark.parametrize(
    ("kind", "reported"),
    [
        ("os:system", "must be a class or function that takes (split, *, options), but it"),
        ("os:sep", "but it is a str"),
        ("own_parts:with_an_option_in_the_wrong_place", "but it takes (split, count, *, options)"),
        ("own_parts:of_anything", "but it takes (*values, **options, *, options)"),
        ("own_parts:Absent", "cannot import data set 'own_parts:Absent'"),
    ],
)
def test_what_does_not_take_what_the_table_takes_is_refused_before_it_is_called(
    kind: str, reported: str, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pretrain", DEBUG, "mse", f"data.kind={kind}", "--dry-run", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert reported in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "override",
    [
        "data.kind=os:system",
        "masking.kind=os:system",
        "discriminator.kind=os:system",
        "augment={kind: os:system}",
        "losses.style.network=os:system",
        "losses.mine={kind: os:system}",
        "discriminator={kind: projected, network: {kind: os:system}}",
    ],
)
def test_no_place_of_a_configuration_calls_os_system(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[object] = []
    monkeypatch.setattr("os.system", lambda command: called.append(command))
    arguments = ["pretrain", DEBUG, "ls_gan_p", override, "--dry-run", "--out", str(tmp_path / "run")]
    assert cli.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "'os:system' must be a" in line]
    assert not called


def test_without_trust_nothing_is_imported_and_the_values_are_kept_as_they_stand(marker: Path) -> None:
    config = parse_config(values_with(count=5, size=[1, 2]), origin="theirs/config.yaml")
    assert not marker.exists()
    assert parse_config(config.model_dump(mode="json", by_alias=True)).model_dump() == config.model_dump()
    assert {"kind": "own_parts:Images", "count": 5, "size": [1, 2]}.items() <= config.data.model_dump().items()
    assert config.data.size == (32, 32)
    with pytest.raises(UserError, match=r"theirs/config\.yaml: .*data set.*own_parts:Images; add --trust-code"):
        config.data.build("train")
    assert not marker.exists()


def test_trust_is_by_name(marker: Path) -> None:
    theirs = values_with() | {"masking": {"kind": "other_parts:masks"}}
    config = parse_config(theirs, trust=Trust(frozenset({"own_parts:Images"})))
    assert marker.exists()
    assert len(config.data.build("train")) == 3
    with pytest.raises(UserError, match="other_parts:masks"):
        config.masking.bind()


def test_what_is_written_of_an_unread_kind_is_what_was_written_of_the_imported_one(marker: Path) -> None:
    config = debug_config("mse", "data={kind: own_parts:Images, count: 5}", "data.size=null", "data.num_images=null")
    written = json.loads(json.dumps(config.model_dump(mode="json", by_alias=True)))
    assert parse_config(written).model_dump(mode="json", by_alias=True) == written
    assert "own_parts:Images" in to_yaml(parse_config(written))


def test_mistakes_in_the_package_s_own_keys_of_an_unread_section_are_reported(marker: Path) -> None:
    with pytest.raises(UserError, match=r"data\.flip: found 2"):
        parse_config(values_with(flip=2))
    assert not marker.exists()


def test_a_class_is_held_to_one_of_the_forms() -> None:
    forms = [("grid", "num_hidden", "generator"), ("attention", "grid", "num_hidden", "generator")]
    with pytest.raises(ValueError, match=r"\(grid, num_hidden, generator, \*, options\) or \(attention, grid,"):
        import_own("json:dumps", "masking", forms)


# Loss terms


def test_every_field_is_one_of_the_term_inputs() -> None:
    assert all(set(term.reads) <= set(FIELDS) for term in TERMS.values())
    documented = vars(TermInputs).keys() | {"fake", "prediction", "mask", "grid", "tokens", "latent"}
    assert {field for field in FIELDS if not field.endswith("_features")} <= documented | set(LOGITS)


def test_a_term_of_ones_own_reads_the_fields_that_its_parameters_are_called(marker: Path) -> None:
    config = debug_config("mse", "losses.mine={kind: own_parts:a_loss, power: 2, weight: 0.5}")
    assert config.losses.term("mine").reads == ("fake", "real")
    assert config.losses["mine"].options() == {"power": 2.0}
    assert config.losses["mine"].weight == 0.5
    lighter = debug_config("mse", "losses.mine={kind: own_parts:a_loss}", "losses.mine=0.25")
    assert lighter.losses["mine"].weight == 0.25
    assert "mine" not in debug_config("mse", "losses.mine={kind: own_parts:a_loss}", "losses.mine=null").losses


@pytest.mark.parametrize(
    ("override", "reported"),
    [
        ("losses.mine={kind: own_parts:of_pixels}", "must be a function of fields"),
        ("losses.mine={kind: own_parts:Images}", "must be a function of fields"),
        ("losses.mine={kind: own_parts:of_anything}", "must be a function of fields"),
        ("losses.mine={kind: own_parts:no_number}", "losses.mine.kind: must return one number"),
        ("losses.mine={kind: own_parts:a_loss, powr: 1}", "losses.mine.powr: unknown option"),
        ("losses.mine={kind: own_parts:absent}", "losses.mine.kind: cannot import loss term"),
        ("losses.mine={weight: 1}", "losses.mine: unknown loss term"),
        ("losses.reconstruction={kind: own_parts:a_loss}", "needs a plain word"),
        ("losses={a-b: {kind: own_parts:a_loss}}", "needs a plain word"),
        ("losses.l1.kind=own_parts:a_loss", "losses.l1.kind: unknown key"),
    ],
)
def test_a_term_that_will_not_do_is_refused_in_a_line(override: str, reported: str, marker: Path) -> None:
    with pytest.raises(UserError) as refused:
        debug_config("mse", override)
    assert reported in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_term_that_was_not_imported_is_kept_and_not_called(marker: Path) -> None:
    written = debug_config("mse", "losses.mine={kind: own_parts:a_loss}").model_dump(mode="json", by_alias=True)
    marker.unlink()
    config = parse_config(written)
    assert config.model_dump(mode="json", by_alias=True) == written
    assert not marker.exists()


def test_penalties_have_no_kinds_and_a_stranger_s_is_refused_unread(
    marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for override in ("penalties.mine={kind: own_parts:a_loss}", "penalties.r1.kind=own_parts:a_loss"):
        assert cli.main(["pretrain", DEBUG, "ls_gan_p", override, "--dry-run", "--out", str(tmp_path / "run")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "mine" in first
    assert "r1, r2, lecam, path_length" in first
    assert "kind" in second
    assert not marker.exists()


def test_a_function_names_at_least_one_field() -> None:
    with pytest.raises(ValueError, match="fields are prediction, target, fake"):
        import_own_term("os:getcwd", FIELDS)


def test_a_layer_file_that_the_user_names_may_name_kinds(marker: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("losses: {mine: {kind: own_parts:a_loss}, mse: 1}\n")
    assert load_config([DEBUG, "mse", str(tmp_path / "mine.yaml")]).losses.term("mine").reads == ("fake", "real")
