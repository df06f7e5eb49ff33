"""The last lines of a run: where its files are, what to do next, and words where it has learned nothing."""

from pathlib import Path
from typing import Any

from perceptual_mae.training.messages import final_message


def summary(hidden: float | None) -> dict[str, Any]:
    baselines = {"mean_color": {"psnr": 16.95, "psnr_masked": 15.7, "ssim": 0.4}}
    scores = {"psnr": 17.0, "psnr_masked": hidden, "ssim": 0.5, "representation": {"rankme": 3.25}}
    rest = {"num_images": 10, "split": "test", "ratio": 0.75, "unreadable_images": 0, "uses_target_statistics": False}
    return scores | rest | {"baselines": baselines}


def test_it_says_where_each_thing_is_and_what_comes_next() -> None:
    lines = final_message(Path("runs/a"), summary(18.0)).splitlines()
    assert lines == [
        "10 held-out images (test), ratio 0.75, fixed masks:",
        "                        PSNR  hidden    SSIM",
        "  this run             17.00   18.00   0.500",
        "  mean color           16.95   15.70   0.400",
        "  features of whole images: RankMe 3.2",
        "  scores    runs/a/summary.json",
        "  pictures  runs/a/images",
        "  curves    runs/a/metrics.jsonl, drawn by pmae curves runs/a",
        "  weights   runs/a/checkpoints",
        "next: pmae visualize runs/a",
    ]


def test_a_run_below_the_mean_colour_is_told_so_in_words() -> None:
    words = "  hidden pixels are worse than the mean colour of the visible ones (15.60 dB, 15.70 dB): the run has not"
    assert words in final_message(Path("runs/a"), summary(15.6))
    assert "worse" not in final_message(Path("runs/a"), summary(15.7))
    assert "worse" not in final_message(Path("runs/a"), summary(None))  # nothing was hidden
