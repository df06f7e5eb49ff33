"""Run folders with made-up scores, for tests of what is read from them."""

import json
from pathlib import Path
from typing import Any

from conftest import debug_config
from perceptual_mae.config.parsing import to_yaml


def make_run(
    path: Path, *arguments: str, psnr_masked: float = 20.0, scores: dict[str, Any] | None = None, **summary: Any
) -> Path:
    """A finished run of debug size without networks; `scores` are its files below evaluation/."""
    config = debug_config("mse", *arguments)
    training, evaluation = config.training, config.evaluation
    steps = training.epochs * (training.epoch_images or 32) // training.batch_size
    (path / "evaluation").mkdir(parents=True)
    (path / "config.yaml").write_text(to_yaml(config))
    facts = {"psnr": 21.0, "psnr_masked": psnr_masked, "ssim": 0.5, "baselines": {"mean_color": {"psnr_masked": 12.0}}}
    facts |= {"split": evaluation.split, "mask_seed": evaluation.seed, "ratio": config.masking.ratio}
    facts |= {"num_images": evaluation.limit, "uses_target_statistics": False, "epochs": training.epochs}
    facts |= {"steps": steps, "images_seen": steps * training.batch_size}
    (path / "summary.json").write_text(json.dumps(facts | summary))
    for stem, report in (scores or {}).items():
        (path / "evaluation" / f"{stem}.json").write_text(json.dumps({"step": steps, **report}))
    return path


def probe(accuracy: float, **facts: Any) -> dict[str, Any]:
    found = {"accuracy": accuracy, "deviation": None, "by_seed": [accuracy]}
    return {"protocol": "cached", "data": "shapes", "limit": None, "scores": {"encoder": {"class": found}}, **facts}


def evaluate(raw: dict[str, float | str], **facts: Any) -> dict[str, Any]:
    return {"kind": "evaluate", "scores": {"raw": raw}, "unavailable": {}, "learns_visible_pixels": True, **facts}
