"""Alarms speak once, in words, and name the key to change."""

import pytest

from perceptual_mae.health import ALARMS, Health

TROUBLE = {
    "discriminator_wins": {"discriminator/accuracy_real": 1.0, "discriminator/accuracy_fake": 0.99},
    "adversarial_drowns": {"gradient_share/adversarial": 1.5},
    "style_drowns": {"gradient_share/style": 1.5},
    "one_answer": {"variety": 0.05},
}
HEALTHY = {
    "discriminator/accuracy_real": 0.9,
    "discriminator/accuracy_fake": 0.9,
    "gradient_share/adversarial": 0.1,
    "gradient_share/style": 0.1,
    "variety": 0.8,
}


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_fires_once_after_its_patience_and_again_after_a_recovery(name: str) -> None:
    health, patience = Health(), ALARMS[name].patience
    fired = [health.observe(TROUBLE[name]) for _ in range(2 * patience)]
    assert [bool(messages) for messages in fired] == [number == patience - 1 for number in range(2 * patience)]
    assert fired[patience - 1] == [ALARMS[name].message]
    health.observe(HEALTHY)
    assert [health.observe(TROUBLE[name]) for _ in range(patience)][-1] == [ALARMS[name].message]


@pytest.mark.parametrize("alarm", ALARMS.values(), ids=list(ALARMS))
def test_an_alarm_names_a_key_to_change(alarm: object) -> None:
    assert "losses." in alarm.message


def test_steps_without_a_measurement_do_not_count_as_healthy() -> None:
    health = Health()
    for _ in range(100):
        health.observe({})
        fired = health.observe({"gradient_share/adversarial": 2.0})
    assert fired == [ALARMS["adversarial_drowns"].message]


def test_a_healthy_run_is_left_in_peace() -> None:
    health = Health()
    assert not any(health.observe(HEALTHY) for _ in range(1000))
