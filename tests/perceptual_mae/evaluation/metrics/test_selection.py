"""Which scores are computed: by name, by what is at hand, and by what is required."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.accumulators import Gather, ReconstructionBatch
from perceptual_mae.evaluation.metrics import METRICS
from perceptual_mae.evaluation.metrics.protocol import ImageMetric, Measure, SetMetric, Setting, UnavailableError
from perceptual_mae.evaluation.metrics.selection import choose, names_of


def difference(fake: Tensor, real: Tensor) -> Tensor:
    return fake - real


def prepare_network(setting: Setting) -> Measure:
    setting.find_weights("eye")
    return difference


class Counter:
    """An accumulator of a set that was prepared for some names."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def update(self, seen: ReconstructionBatch) -> None: ...

    def compute(self, gather: Gather) -> Mapping[str, Any]:
        return {"scores": {"raw": dict.fromkeys(self.names, 0.0)}}


def prepare_set(setting: Setting, names: Sequence[str]) -> Counter:
    setting.find_weights("inception")
    return Counter(names)


TABLE = {
    "plain": ImageMetric(lambda _: difference),
    "seen": ImageMetric(prepare_network, network=True, versions=("lpips", "not-installed")),
    "fid": SetMetric(prepare_set),
    "kid": SetMetric(prepare_set),
}


def setting(folder: Path) -> Setting:
    def find(name: str) -> Path:
        if not (folder / name).exists():
            raise UnavailableError(f"no {name}; fetch it")
        return folder / name

    return Setting((32, 32), 3, torch.device("cpu"), 8, find, 8)


def test_names_come_in_the_order_of_the_table_and_groups_stand_for_many() -> None:
    assert names_of("kid, plain", TABLE) == ["plain", "kid"]
    assert names_of(None, TABLE) == names_of("all", TABLE) == list(TABLE)
    assert names_of("cheap,fid", TABLE) == ["plain", "fid"]


def test_an_unknown_name_is_refused_with_the_one_that_was_meant(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--metrics: there is no 'pnsr' \(did you mean 'psnr'\?\); choose from: l1, "):
        names_of("l1,pnsr")
    with pytest.raises(UserError, match="--require: there is no 'fdi'; choose from: plain, seen, fid, kid"):
        choose([], ["fdi"], setting(tmp_path), TABLE)


def test_what_is_not_at_hand_is_left_out_with_its_reason(tmp_path: Path) -> None:
    chosen = choose(list(TABLE), [], setting(tmp_path), TABLE)
    assert list(chosen.measures) == ["plain"]
    assert chosen.accumulators == []
    assert chosen.unavailable == {
        "seen": "no eye; fetch it",
        "fid": "no inception; fetch it",
        "kid": "no inception; fetch it",
    }
    assert chosen.networks == {}


def test_scores_of_sets_that_share_a_network_are_prepared_once_and_networks_are_reported(tmp_path: Path) -> None:
    for name in ("eye", "inception"):
        (tmp_path / name).write_text(name)
    chosen = choose(["kid", "fid", "seen"], [], setting(tmp_path), TABLE)
    (accumulator,) = chosen.accumulators
    assert isinstance(accumulator, Counter)
    assert accumulator.names == ["fid", "kid"]
    assert list(chosen.measures) == ["seen"]
    digest = hashlib.sha256(b"eye").hexdigest()
    assert chosen.networks["eye"] == {"file": "eye", "sha256": digest}
    assert set(chosen.networks) == {"eye", "inception"}
    assert chosen.versions["lpips"] is not None
    assert chosen.versions["not-installed"] is None


def test_a_required_score_is_computed_though_nobody_listed_it_and_its_lack_is_a_mistake(tmp_path: Path) -> None:
    assert list(choose([], ["plain"], setting(tmp_path), TABLE).measures) == ["plain"]
    with pytest.raises(UserError, match="--require: kid no inception; fetch it"):
        choose(["plain"], ["plain", "kid"], setting(tmp_path), TABLE)


@pytest.mark.parametrize("name", METRICS)
def test_every_line_is_prepared_or_says_why_not(name: str, tmp_path: Path) -> None:
    def nowhere(name: str) -> Path:
        raise UnavailableError(f"the weights of {name} are not installed; fetch them: pmae weights fetch {name}")

    chosen = choose([name], [], Setting((8, 8), 3, torch.device("cpu"), 8, nowhere, 4))
    assert bool(chosen.unavailable.get(name)) != (name in chosen.measures or bool(chosen.accumulators))
    assert all("; " in reason for reason in chosen.unavailable.values())
