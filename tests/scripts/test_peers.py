"""The masked autoencoders that our MSE step is timed against."""

import pytest
import torch

from peers import PEERS, SIZES, main, peer_step, race
from perceptual_mae.benchmark.measure import Quartiles
from perceptual_mae.config.build import build_generator
from perceptual_mae.config.parsing import RunConfig, load_config

NARROW = ("generator.width=48", "generator.depth=2", "generator.decoder_width=48", "generator.decoder_depth=1")


def narrow(*more: str) -> RunConfig:
    return load_config([*SIZES["32"], *NARROW, "training.batch_size=2", "data.workers=0", *more])


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_has_exactly_as_many_weights_as_our_generator(peer: str) -> None:
    config = narrow()
    ours = build_generator(config.generator, config.data.image, 0)
    theirs = PEERS[peer](ours, config.data.size, config.masking.ratio)
    counts = [sum(weight.numel() for weight in net.parameters() if weight.requires_grad) for net in (ours, theirs)]
    assert counts[0] == counts[1]


def test_timms_blocks_are_scored_on_the_hidden_patches_alone() -> None:
    config = narrow()
    ours = build_generator(config.generator, config.data.image, 0)
    network = PEERS["timm's blocks"](ours, config.data.size, 0.75)
    torch.nn.init.zeros_(network.prediction.weight)  # every patch is predicted as 0
    torch.nn.init.zeros_(network.prediction.bias)
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, :4, :4] = 1  # one patch of 64, of which 48 are hidden: its error counts where it is one of them
    losses = {round(network(images).item(), 6) for _ in range(60)}
    assert losses == {0.0, round(1 / 48, 6)}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_step_of_a_peer_changes_every_kind_of_weight(
    peer: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks: list[torch.nn.Module] = []
    build = PEERS[peer]
    monkeypatch.setitem(PEERS, peer, lambda *sizes: networks.append(build(*sizes)) or networks[0])
    step = peer_step(peer, narrow(f"training.precision={precision}"), torch.device("cpu"))
    before = {name: weight.clone() for name, weight in networks[0].named_parameters() if weight.requires_grad}
    step()
    after = dict(networks[0].named_parameters())
    unchanged = [name for name, weight in before.items() if torch.equal(weight, after[name])]
    assert not [name for name in unchanged if not name.endswith("k_proj.bias")]  # the softmax does not see it


def test_ratios_are_taken_within_each_round() -> None:
    own, ratios = race(narrow(), ["timm's blocks"], rounds=3)
    assert own.median > 0
    assert 0 < ratios["timm's blocks"].lower <= ratios["timm's blocks"].upper


@pytest.mark.parametrize(
    ("value", "ours", "theirs"), [("off", "off", False), ("ours", "all", False), ("all", "all", True)]
)
def test_the_table_says_whose_networks_were_compiled(
    value: str,
    ours: str,
    theirs: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, bool]] = []

    def noted(
        config: RunConfig, names: list[str], *, rounds: int, compiled: bool
    ) -> tuple[Quartiles, dict[str, Quartiles]]:
        asked.append((config.training.compile, compiled))
        return Quartiles(1.0, 1.0, 1.0), {}

    monkeypatch.setattr("peers.race", noted)
    threads = torch.get_num_threads()
    assert main(["--compile", value]) == 0
    torch.set_num_threads(threads)
    assert asked == [(ours, theirs)]
    assert f"compiled: {value}," in capsys.readouterr().out


def test_a_peers_network_is_compiled_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: compiled.append(type(network).__name__))
    for asked in (False, True):
        peer_step("timm's blocks", narrow(), torch.device("cpu"), compiled=asked)()
    assert compiled == ["TimmMae"]


def test_the_table_names_every_peer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "32", (*SIZES["32"], *NARROW))
    threads = torch.get_num_threads()
    assert main(["--size", "32", "--precision", "no", "--rounds", "1"]) == 0
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert all(f"| {peer} |" in printed for peer in PEERS)
