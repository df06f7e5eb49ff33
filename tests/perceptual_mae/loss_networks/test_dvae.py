"""DALL-E's encoder: its sizes, and its arithmetic under the names of its published tensors."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from perceptual_mae.loss_networks.dvae import dvae, encoder_blocks

GROUPS = ("group_1", "group_2", "group_3", "group_4")


def published_state(width: int) -> dict[str, Tensor]:
    """Random tensors under the published names: `blocks`, `w` and `b`."""
    generator = torch.Generator().manual_seed(0)
    state = encoder_blocks(width).state_dict()
    names = {name: f"blocks.{name.replace('weight', 'w').replace('bias', 'b')}" for name in state}
    return {names[name]: 0.1 * torch.randn(value.shape, generator=generator) for name, value in state.items()}


def reference(state: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """The encoder written out, from the published names alone."""

    def conv(name: str, hidden: Tensor) -> Tensor:
        weight = state[f"blocks.{name}.w"]
        return F.conv2d(hidden, weight, state[f"blocks.{name}.b"], padding=weight.shape[-1] // 2)

    hidden = conv("input", 0.8 * images + 0.1)
    outputs = []
    for group in range(1, 5):
        for block in (1, 2):
            name = f"group_{group}.block_{block}"
            kept = conv(f"{name}.id_path", hidden) if f"blocks.{name}.id_path.w" in state else hidden
            for layer in range(1, 5):
                hidden = conv(f"{name}.res_path.conv_{layer}", F.relu(hidden))
            hidden = kept + hidden / 64
        if group < 4:
            hidden = F.max_pool2d(hidden, 2)
        outputs.append(hidden)
    return [*outputs, conv("output.conv", F.relu(hidden))]


def test_parameters_shapes_and_cost_are_those_of_the_published_encoder() -> None:
    images = torch.zeros(1, 3, 224, 224, device="meta")
    with torch.device("meta"):
        groups = dvae((224, 224), 3, weights="random")
        whole = dvae((224, 224), 3, weights="random", layers=(*GROUPS, "output"))
    assert sum(parameter.numel() for parameter in groups.parameters()) == 37_000_832
    assert sum(parameter.numel() for parameter in whole.parameters()) == 53_786_240
    shapes = [(256, 112, 112), (512, 56, 56), (1024, 28, 28), (2048, 28, 28), (8192, 28, 28)]
    assert [tuple(feature.shape[1:]) for feature in whole.network(images)] == shapes
    with FlopCounterMode(display=False) as flops:
        groups.network(images)
    assert flops.get_total_flops() / 2 == pytest.approx(91e9, rel=0.01)


def test_at_32_pixels_the_groups_have_16_8_4_and_4_a_side() -> None:
    with torch.device("meta"):
        network = dvae((32, 32), 3, weights="random").network
    assert [feature.shape[-1] for feature in network(torch.zeros(1, 3, 32, 32, device="meta"))] == [16, 8, 4, 4]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_with_the_published_names_gives_the_published_arithmetic(suffix: str, tmp_path) -> None:
    state = published_state(width=8)
    path = tmp_path / f"encoder.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    images = torch.rand(2, 3, 32, 32)
    network = dvae((32, 32), 3, weights=str(path), width=8, layers=(*GROUPS, "output"))
    for own, expected in zip(network(images), reference(state, images), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    # The tensors of the last layer may stay unread.
    groups = dvae((32, 32), 3, weights=str(path), width=8)(images)
    assert all(torch.equal(*pair) for pair in zip(groups, network(images)[:4], strict=True))


def test_an_encoder_of_another_width_and_unknown_layers_are_refused(tmp_path) -> None:
    torch.save(published_state(width=8), tmp_path / "encoder.pt")
    with pytest.raises(ValueError, match=r"another network, .* of another shape \(first: layers.input.weight\)"):
        dvae((32, 32), 3, weights=str(tmp_path / "encoder.pt"), width=16)
    with pytest.raises(ValueError, match="multiple of 4"):
        dvae((32, 32), 3, weights="random", width=6)
    with pytest.raises(ValueError, match="dvae has no layers"):
        dvae((32, 32), 3, weights="random", layers=("group_5",))
