"""One line in the table, or a name of one's own, is all that a new discriminator needs."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import test_contract
import torch
import yaml
from tiny_discriminator import Tiny

from conftest import debug_config, debug_trainer, random_batches
from discriminators import DISCRIMINATORS
from perceptual_mae.cli.pretrain import describe
from perceptual_mae.config.own_kinds import Trust
from perceptual_mae.config.parsing import json_schema, parse_config, to_yaml
from perceptual_mae.errors import UserError
from perceptual_mae.run import checkpoint
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training import trainer_state
from perceptual_mae.training.trainer import Trainer

REGISTERED, NAMED = "tiny", "tiny_discriminator:Tiny"
EVERYTHING = (
    *("generator.skips=true", "generator.rgb_heads=true", "losses.l1.low_levels=0.1"),
    *("augment={kind: ada, initial_p: 0.5}", "penalties={r1: {every: 1}, path_length: {every: 1}}"),
)
"""What a pyramid discriminator can be asked for: heads and skips, augmentation, both penalties."""


@pytest.fixture(autouse=True)
def one_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DISCRIMINATORS, REGISTERED, Tiny)


either_way = pytest.mark.parametrize("kind", [REGISTERED, NAMED])


def trainer_with(kind: str, *overrides: str) -> Trainer:
    return debug_trainer("ls_gan_p", f"discriminator.kind={kind}", "discriminator.width=6", *EVERYTHING, *overrides)


def contract_cases() -> Iterator[object]:
    """Every test of the contract with every case it is parametrised over, the kind left open."""
    for name, test in vars(test_contract).items():
        marks = getattr(test, "pytestmark", []) if name.startswith("test_") else []
        axes = dict(mark.args for mark in marks if mark.name == "parametrize")
        if axes.pop("kind", None) is None:
            continue
        for values in itertools.product(*axes.values()):
            case = dict(zip(axes, values, strict=True))
            others = [mark for mark in marks if mark.name != "parametrize"]
            yield pytest.param(test, case, id="-".join([name, *map(str, case.values())]), marks=others)


@pytest.mark.parametrize(("test", "case"), list(contract_cases()))
def test_it_is_held_to_the_contract(test: Callable[..., None], case: dict[str, object]) -> None:
    test(kind=REGISTERED, **case)


@either_way
def test_its_options_are_read_checked_written_and_read_back(kind: str) -> None:
    config = debug_config("ls_gan_p", f"discriminator.kind={kind}", "discriminator.width=6")
    assert config.discriminator is not None
    assert config.discriminator.options() == {"width": 6}
    assert parse_config(yaml.safe_load(to_yaml(config)), trust=Trust(frozenset([NAMED]))) == config
    for override, message in (("width=0", "width of at least 1"), ("widht=3", "did you mean 'width'?")):
        with pytest.raises(UserError, match="discriminator") as refused:
            debug_config("ls_gan_p", f"discriminator.kind={kind}", f"discriminator.{override}")
        assert message in str(refused.value)
    assert "discriminator: 1,741 parameters" in describe(config, Path("anywhere"))


def test_editors_and_mistakes_learn_of_it() -> None:
    assert "'tiny'" in str(json_schema()["properties"]["discriminator"])
    with pytest.raises(UserError, match=r"choose from: ls_gan, .*tiny.*did you mean 'tiny'\?"):
        debug_config("ls_gan_p", "discriminator.kind=tinny")


@either_way
@pytest.mark.parametrize("order", ["lean", "sequential"])
def test_it_learns_and_teaches_in_odd_and_even_epochs_with_every_companion(order: str, kind: str) -> None:
    trainer = trainer_with(kind, f"training.order={order}")
    assert isinstance(trainer.unwrapped_discriminator, Tiny)
    before = {name: value.clone() for name, value in trainer.unwrapped_discriminator.state_dict().items()}
    trainer.step(random_batches(4), TrainingProgress(1, 0, 0.0))
    for progress in (TrainingProgress(1, 3, 0.2), TrainingProgress(2, 9, 0.6)):
        scalars = trainer.step(random_batches(4), progress)
        assert all(torch.isfinite(value) for value in scalars.values())
        recorded = {
            "weighted/adversarial",
            "penalty/r1",
            "penalty/path_length",
            "augment/p",
            "discriminator/accuracy_real",
        }
        assert recorded <= scalars.keys()
        assert ("weighted/style" in scalars) == (progress.epoch == 2)
    assert all(
        not torch.equal(value, before[name]) for name, value in trainer.unwrapped_discriminator.state_dict().items()
    )


@either_way
@pytest.mark.parametrize("term", ["feature_matching", "style"])
def test_its_perceptual_terms_reach_every_tensor_of_the_generator(term: str, kind: str) -> None:
    trainer = trainer_with(kind, "penalties=null")
    trainer.objective.lines = {term: trainer.objective.lines[term]}
    reached: set[str] = set()

    def note(name: str, gradient: torch.Tensor) -> None:
        reached.update([name] if gradient.any() else [])

    for name, parameter in trainer.unwrapped_generator.named_parameters():
        parameter.register_hook(lambda gradient, name=name: note(name, gradient))
    trainer.step(random_batches(4), TrainingProgress(2, 9, 0.6))
    assert reached == {name for name, _ in trainer.unwrapped_generator.named_parameters()}


@either_way
def test_a_run_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(kind: str, tmp_path: Path) -> None:
    unbroken, resumed = trainer_with(kind), trainer_with(kind)
    for step in range(3):
        unbroken.step(random_batches(4, seed=step), TrainingProgress(1, step, 0.1))
    tensors, facts = trainer_state.state_dict(unbroken, unbroken.accelerator)
    checkpoint.save(tmp_path, 3, tensors, {"step": 3, **facts})
    trainer_state.load_state_dict(resumed, resumed.accelerator, tmp_path / "step_00000003")
    outcomes = [trainer.step(random_batches(4, seed=3), TrainingProgress(2, 3, 0.2)) for trainer in (unbroken, resumed)]
    assert outcomes[0].keys() == outcomes[1].keys()
    assert all(torch.equal(value, outcomes[1][name]) for name, value in outcomes[0].items())
    states = [trainer.unwrapped_discriminator.state_dict() for trainer in (unbroken, resumed)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
