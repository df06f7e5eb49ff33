"""Alarms speak once, in words, and name the key to change."""

import json

import pytest
import torch

from perceptual_mae.training.gan_monitor import ALARMS, Alarm, GanMonitor

TROUBLE = {
    "discriminator_wins": {"discriminator/accuracy_real": 1.0, "discriminator/accuracy_fake": 0.99},
    "discriminator_collapses": {"discriminator/accuracy_real": 1.0, "discriminator/accuracy_fake": 0.03},
    "adversarial_drowns": {"gradient_share/decoder/adversarial": 0.6},
    "style_drowns": {"gradient_share/decoder/style": 0.6},
    "feature_matching_drowns": {"gradient_share/decoder/feature_matching": 0.6},
    "one_answer": {"variety": 0.05},
}
HEALTHY = {
    "gradient_share/decoder/high_frequency": 0.1,
    "gradient_share/decoder/ms_ssim": 0.1,
    "discriminator/accuracy_real": 0.9,
    "discriminator/accuracy_fake": 0.9,
    "gradient_share/decoder/adversarial": 0.1,
    "gradient_share/decoder/style": 0.1,
    "gradient_share/decoder/feature_matching": 0.1,
    "variety": 0.8,
}


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_fires_once_after_its_window_and_again_after_a_recovery(name: str) -> None:
    health, window = GanMonitor(), ALARMS[name].window
    trouble = TROUBLE.get(name) or {ALARMS[name].watches[0]: 0.6}
    fired = [health.observe(trouble) for _ in range(2 * window)]
    assert [bool(messages) for messages in fired] == [number == window - 1 for number in range(2 * window)]
    assert fired[window - 1] == [ALARMS[name].message]
    for _ in range(window):
        health.observe(HEALTHY)
    assert [health.observe(trouble) for _ in range(window)][-1] == [ALARMS[name].message]


@pytest.mark.parametrize("batch_size", [8, 128])
@pytest.mark.parametrize(
    ("accuracy", "alarm"), [(0.5, "discriminator_collapses"), (0.99, "discriminator_wins"), (0.7, None)]
)
def test_alarms_look_past_the_scatter_of_single_batches(accuracy: float, alarm: str | None, batch_size: int) -> None:
    health, generator = GanMonitor(), torch.Generator().manual_seed(0)
    fired = []
    for _ in range(200):
        right = [(torch.rand(batch_size, generator=generator) < accuracy).float().mean().item() for _ in range(2)]
        keys = ("discriminator/accuracy_real", "discriminator/accuracy_fake")
        fired += health.observe(dict(zip(keys, right, strict=True)))
    assert fired == ([ALARMS[alarm].message] if alarm else [])


@pytest.mark.parametrize("alarm", ALARMS.values(), ids=list(ALARMS))
def test_an_alarm_names_a_key_to_change(alarm: Alarm) -> None:
    assert "losses." in alarm.message or "optimizer." in alarm.message


def test_steps_without_a_measurement_do_not_count_as_healthy() -> None:
    health = GanMonitor()
    for _ in range(ALARMS["adversarial_drowns"].window):
        health.observe({})
        fired = health.observe({"gradient_share/decoder/adversarial": 0.9})
    assert fired == [ALARMS["adversarial_drowns"].message]


def test_a_window_goes_on_where_it_was_saved() -> None:
    health, resumed = GanMonitor(), GanMonitor()
    window = ALARMS["adversarial_drowns"].window
    for _ in range(window - 1):
        assert health.observe(TROUBLE["adversarial_drowns"]) == []
    resumed.load_state_dict(json.loads(json.dumps(health.state_dict())))
    assert resumed.observe(TROUBLE["adversarial_drowns"]) == [ALARMS["adversarial_drowns"].message]


def test_a_healthy_run_is_left_in_peace() -> None:
    health = GanMonitor()
    assert not any(health.observe(HEALTHY) for _ in range(1000))
