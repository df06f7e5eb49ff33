"""Progress: a bar a task on a terminal, a line every few seconds elsewhere, nothing where quiet."""

import pytest
from rich.console import Console

from perceptual_mae import progress
from perceptual_mae.progress import ProgressBar


class Clock:
    """A clock that stands until it is moved."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(progress, "time", stopped)
    return stopped


def lines_of(console: Console) -> list[str]:
    return console.export_text().splitlines()


def test_elsewhere_than_on_a_terminal_a_line_comes_every_fifteen_seconds_with_the_time_left(clock: Clock) -> None:
    console = Console(record=True, force_terminal=False)
    with ProgressBar(console=console) as on_progress:
        for done in range(11):
            on_progress("features", done, 10)
            clock.now += 6.0
    # 6 s an item; lines at 18 s (3 of 10), 36 s (6) and 54 s (9)
    assert lines_of(console) == [
        "features: 3 of 10, left 0:00:42",
        "features: 6 of 10, left 0:00:24",
        "features: 9 of 10, left 0:00:06",
    ]


def test_the_time_left_counts_what_was_done_since_the_first_call_not_before(clock: Clock) -> None:
    console = Console(record=True, force_terminal=False)
    with ProgressBar(console=console, seconds_between_lines=None) as on_progress:
        on_progress("training", 4, 10)  # resumed after 4 steps
        clock.now += 3.0
        on_progress("training", 5, 10)
        on_progress.status("training", "epoch 1", "10 images/s  l1 0.3000")
    assert lines_of(console) == ["epoch 1  step 5/10  left 0:00:15  10 images/s  l1 0.3000"]


def test_each_task_has_a_clock_of_its_own(clock: Clock) -> None:
    console = Console(record=True, force_terminal=False)
    with ProgressBar(console=console) as on_progress:
        on_progress("train", 0, 4)
        clock.now += 20.0
        on_progress("test", 0, 4)  # begins now: no line yet
        on_progress("train", 2, 4)
    assert lines_of(console) == ["train: 2 of 4, left 0:00:20"]


def test_on_a_terminal_each_task_has_a_bar_and_status_is_next_to_it() -> None:
    console = Console(record=True, force_terminal=True, width=120)
    with ProgressBar(console=console) as on_progress:
        for done in range(1, 5):
            on_progress("bench", done, 4)
        on_progress("[probe]", 1, 3)
        on_progress.status("bench", "epoch 2", "l1 0.1000")
        on_progress.log("resumed from [x]")
    text = console.export_text()
    assert "epoch 2  l1 0.1000" in text
    assert "4/4" in text
    assert "[probe]" in text
    assert "1/3" in text
    assert "resumed from [x]" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_narrow_terminal_cuts_the_words_and_keeps_the_counter_and_the_time_left(width: int) -> None:
    console = Console(record=True, force_terminal=True, width=width, soft_wrap=True)
    losses = "707 images/s  l1 0.5010  feature_matching 0.0263  style 0.0428  adversarial 0.0233"
    with ProgressBar(console=console) as on_progress:
        on_progress("training", 1250, 93600)
        on_progress.status("training", "epoch 2", losses)
    (line,) = [line for line in lines_of(console) if "1250/93600" in line][-1:]
    last = line[line.rindex("1250/93600") :].rstrip()
    assert len(last) <= width
    assert last.startswith("1250/93600 left -:--:--")
    assert last.endswith("0.0233" if width == 200 else "…")


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_shows_nothing(terminal: bool, clock: Clock) -> None:
    console = Console(record=True, force_terminal=terminal)
    with ProgressBar(quiet=True, console=console) as on_progress:
        for done in range(3):
            on_progress("bench", done, 4)
            clock.now += 60.0
        on_progress.status("bench", "epoch 1", "l1")
        on_progress.log("warning")
    assert lines_of(console) == []
