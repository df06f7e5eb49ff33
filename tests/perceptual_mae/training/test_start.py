"""When the adversarial terms and the discriminator start."""

import pytest
import torch

from conftest import debug_config, debug_trainer, random_batches
from perceptual_mae.config.build import discriminator_start
from perceptual_mae.schedules import FromEpoch, FromShare, TrainingProgress, first_share, is_active

LATE = ["losses.adversarial.when={from_share: 0.5}", "losses.adversarial.weight=0.5"]


def test_a_share_of_the_run_is_over_before_the_term_is_on() -> None:
    when = FromShare(from_share=0.2)
    assert [is_active(when, TrainingProgress(1, step, step / 10)) for step in (1, 2, 9)] == [False, True, True]


def test_first_shares_worked_by_hand() -> None:
    phases = ["always", "odd_epochs", "even_epochs", FromEpoch(from_epoch=3), FromShare(from_share=0.2)]
    assert [first_share(when, 4) for when in phases] == [0.0, 0.0, 0.25, 0.5, 0.2]


@pytest.mark.parametrize(
    ("overrides", "start"),
    [([], 0.0), (["discriminator.lead=0.1"], 0.4), (["discriminator.lead=0"], 0.5), (["discriminator.lead=0.8"], 0.0)],
)
def test_the_discriminator_learns_from_the_start_or_a_lead_before_what_reads_it(
    overrides: list[str], start: float
) -> None:
    config = debug_config("ls_gan", *LATE, *overrides)
    assert config.discriminator is not None
    assert discriminator_start(config.discriminator, config.losses, config.training.epochs) == pytest.approx(start)


@pytest.mark.parametrize("order", ["lean", "sequential"])
def test_before_its_start_the_discriminator_is_not_even_asked(order: str) -> None:
    off = ["losses.feature_matching=null", "losses.style=null", "generator.rgb_heads=false"]
    trainer = debug_trainer("stylegan2_ada_p", *off, *LATE, "discriminator.lead=0.25", f"training.order={order}")
    calls: list[int] = []
    trainer.unwrapped_discriminator.register_forward_hook(lambda *_: calls.append(1))
    reported, learnt = [], []
    for step in range(4):
        before = [each.clone() for each in trainer.unwrapped_discriminator.parameters()]
        scalars = trainer.step(random_batches(4, seed=step), TrainingProgress(1 + step // 2, 16 * step, step / 4))
        after = trainer.unwrapped_discriminator.parameters()
        learnt.append(not all(torch.equal(*pair) for pair in zip(before, after, strict=True)))
        reported.append({name for name in scalars if name.startswith(("discriminator/", "raw/adv", "penalty/"))})
        if not step:
            assert not calls
    assert learnt == [False, True, True, True]
    assert [bool(names) for names in reported] == [False, True, True, True]
    assert ["raw/adversarial" in names for names in reported] == [False, False, True, True]


def test_a_discriminator_with_a_lead_has_learnt_before_the_generator_feels_it() -> None:
    trainer = debug_trainer("ls_gan", *LATE)
    plain = debug_trainer("l1")
    for step in range(4):
        progress = TrainingProgress(1, step, step / 8)
        for each in (trainer, plain):
            each.step(random_batches(4, seed=step), progress)
    pairs = zip(trainer.unwrapped_generator.parameters(), plain.unwrapped_generator.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
