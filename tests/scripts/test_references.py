"""The pages that are generated say what schema and code say, and metrics.jsonl holds what its page lists."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import debug_config
from perceptual_mae.config.all_keys import models_of_places
from perceptual_mae.config.errors import fields_of
from perceptual_mae.training.loop import pretrain
from perceptual_mae.training.metrics import METRICS_KEYS

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts/make_references.py"))
ONLY_ON_AN_ACCELERATOR = {"skipped/NETWORK"}
ONLY_WHERE_SOMETHING_IS_NOT_FINITE = {"skipped_steps"}


@pytest.mark.parametrize("page", ["configuration", "metrics", "transfer_keys"])
def test_the_page_is_what_the_script_writes(page: str) -> None:
    stored = (ROOT / f"docs/{page}.md").read_text()
    assert SCRIPT[f"{page}_page"]() == stored, "stale: uv run python scripts/make_references.py"


def test_every_key_of_every_kind_is_on_the_page_of_the_configuration() -> None:
    page = SCRIPT["configuration_page"]()
    for place, models in models_of_places().items():
        section = page.partition(f"## `{place}`\n")[2].partition("\n## ")[0] if place else page
        for model in models.values():
            assert not [name for name in fields_of(model) if f"| `{name}` |" not in section], place


def names_in(record: dict[str, Any], prefix: str = "") -> set[str]:
    names = set()
    for key, value in record.items():
        nested = isinstance(value, dict) and f"{prefix}{key}" not in METRICS_KEYS
        names |= names_in(value, f"{prefix}{key}/") if nested else {f"{prefix}{key}"}
    return names


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names that runs of three methods have written to metrics.jsonl."""
    torch.set_num_threads(1)  # before the fixture of each test
    quick = ["training.epochs=2", "training.epoch_images=32", "training.batch_size=4", "training.log_every=2"]
    quick += ["evaluation.limit=4", "evaluation.grid_images=1", "evaluation.probe_images=20"]
    names = set()
    for method, *options in (
        ("mse", "optimizer.clip_norm=1.0"),
        ("ls_gan_p", "penalties={r2: {every: 1}, lecam: {from_step: 0}}"),
        ("stylegan2_ada_p", "optimizer.clip_norm=1.0", "training.ema_kimg=1", "penalties.path_length.every=2"),
    ):
        path = tmp_path_factory.mktemp("runs") / method
        pretrain(debug_config(method, *quick, *options), path, quiet=True)
        for line in (path / "metrics.jsonl").read_text().splitlines():
            names |= names_in(json.loads(line))
    return names


def pattern_of(key: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"[A-Z]{2,}", "[^/]+", key))


@pytest.mark.slow
def test_every_key_of_metrics_jsonl_is_in_the_table(logged: set[str]) -> None:
    patterns = [pattern_of(key) for key in METRICS_KEYS]
    assert len(logged) > 40
    assert sorted(name for name in logged if not any(pattern.fullmatch(name) for pattern in patterns)) == []


@pytest.mark.slow
def test_every_line_of_the_table_is_written_by_some_run(logged: set[str]) -> None:
    missing = {key for key in METRICS_KEYS if not any(pattern_of(key).fullmatch(name) for name in logged)}
    assert missing == ONLY_ON_AN_ACCELERATOR | ONLY_WHERE_SOMETHING_IS_NOT_FINITE
