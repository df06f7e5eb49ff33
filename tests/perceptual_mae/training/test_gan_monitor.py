"""Alarms speak once, in words, and name the key to change."""

import json

import pytest
import torch

from perceptual_mae.training.gan_monitor import ALARMS, Alarm, GanMonitor

TROUBLE = {
    "discriminator_wins": {"discriminator/accuracy_real": 1.0, "discriminator/accuracy_fake": 0.99},
    "discriminator_collapses": {"discriminator/accuracy_real": 1.0, "discriminator/accuracy_fake": 0.03},
    "adversarial_dominates": {"gradient_share/decoder/adversarial": 0.6},
    "style_dominates": {"gradient_share/decoder/style": 0.6},
    "feature_matching_dominates": {"gradient_share/decoder/feature_matching": 0.6},
    "mode_collapse": {"variety": 0.05},
}
HEALTHY = {
    "discriminator/accuracy_real": 0.9,
    "discriminator/accuracy_fake": 0.9,
    "variety": 0.8,
} | {key: 0.1 for alarm in ALARMS.values() for key in alarm.keys if key.startswith("gradient_share/")}


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_fires_once_after_its_window_and_again_after_a_recovery(name: str) -> None:
    monitor, window = GanMonitor(), ALARMS[name].window
    trouble = TROUBLE.get(name) or {ALARMS[name].keys[0]: 0.6}
    fired = [monitor.observe(trouble) for _ in range(2 * window)]
    assert [bool(messages) for messages in fired] == [number == window - 1 for number in range(2 * window)]
    assert fired[window - 1] == [ALARMS[name].message]
    for _ in range(window):
        monitor.observe(HEALTHY)
    assert [monitor.observe(trouble) for _ in range(window)][-1] == [ALARMS[name].message]


@pytest.mark.parametrize("batch_size", [8, 128])
@pytest.mark.parametrize(
    ("accuracy", "alarm"), [(0.5, "discriminator_collapses"), (0.99, "discriminator_wins"), (0.7, None)]
)
def test_alarms_look_past_the_scatter_of_single_batches(accuracy: float, alarm: str | None, batch_size: int) -> None:
    monitor, generator = GanMonitor(), torch.Generator().manual_seed(0)
    fired = []
    for _ in range(200):
        right = [(torch.rand(batch_size, generator=generator) < accuracy).float().mean().item() for _ in range(2)]
        keys = ("discriminator/accuracy_real", "discriminator/accuracy_fake")
        fired += monitor.observe(dict(zip(keys, right, strict=True)))
    assert fired == ([ALARMS[alarm].message] if alarm else [])


@pytest.mark.parametrize("alarm", ALARMS.values(), ids=list(ALARMS))
def test_an_alarm_names_a_key_to_change(alarm: Alarm) -> None:
    assert "losses." in alarm.message or "optimizer." in alarm.message


def test_steps_without_a_measurement_do_not_count_as_monitory() -> None:
    monitor = GanMonitor()
    for _ in range(ALARMS["adversarial_dominates"].window):
        monitor.observe({})
        fired = monitor.observe({"gradient_share/decoder/adversarial": 0.9})
    assert fired == [ALARMS["adversarial_dominates"].message]


def test_a_window_goes_on_where_it_was_saved() -> None:
    monitor, resumed = GanMonitor(), GanMonitor()
    window = ALARMS["adversarial_dominates"].window
    for _ in range(window - 1):
        assert monitor.observe(TROUBLE["adversarial_dominates"]) == []
    resumed.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    assert resumed.observe(TROUBLE["adversarial_dominates"]) == [ALARMS["adversarial_dominates"].message]


def test_a_monitory_run_is_left_in_peace() -> None:
    monitor = GanMonitor()
    assert not any(monitor.observe(HEALTHY) for _ in range(1000))


def test_a_state_of_version_0_1_is_taken_up_under_the_new_names() -> None:
    windows = {name: [0.5] for name in ALARMS}
    old = {"windows": {**windows, "style_drowns": [0.6, 0.7], "one_answer": [0.1], "gone": [1.0]}, "is_bad": {}}
    del old["windows"]["style_dominates"], old["windows"]["mode_collapse"]
    monitor = GanMonitor()
    monitor.load_state_dict(old)
    state = monitor.state_dict()["windows"]
    assert state["style_dominates"] == [0.6, 0.7]
    assert state["mode_collapse"] == [0.1]
    assert state.keys() == ALARMS.keys()
