"""NVIDIA's published discriminator: its names, and our network with its weights."""

import pytest
import torch

from discriminators.nvidia import from_nvidia, is_nvidias, options_of
from discriminators.stylegan2 import StyleGAN2
from nvidia_reference import nvidia_forward, nvidia_shapes, nvidia_state, to_four

ARCHITECTURES = ["resnet", "orig", "skip"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("side", "base", "batch"), [(32, 256, 5), (64, 512, 6), (8, 64, 4)])
def test_published_weights_map_over_and_give_the_same_logits_and_gradients(architecture, side, base, batch):
    state = nvidia_state(side, base, architecture)
    ours = StyleGAN2(to_four(side), 3, input="single", architecture=architecture, channel_base=base).double()
    buffers = {"b4.conv.resample_filter": torch.zeros(4, 4), f"b{side}.resample_filter": torch.zeros(4, 4)}
    ours.load_state_dict(from_nvidia(state | buffers))

    images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    images.requires_grad_()
    results = [ours([images]).logits, nvidia_forward(state, images * 2 - 1, architecture)]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(logits.square().sum(), images)[0] for logits in results))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("side", [32, 64, 256])
def test_tensors_have_the_published_shapes_and_order(architecture, side):
    with torch.device("meta"):
        ours = StyleGAN2(to_four(side), 3, input="single", architecture=architecture, channel_base=16384)
    published = nvidia_shapes(side, 16384, architecture)
    names = from_nvidia({name: torch.empty(shape, device="meta") for name, shape in published.items()})
    assert [name for name, _ in ours.named_parameters()] == list(names)
    assert [tuple(parameter.shape) for parameter in ours.parameters()] == list(published.values())


def test_states_of_other_networks_are_refused():
    state = nvidia_state(8, 64, "resnet")
    for foreign in ("mapping.fc0.weight", "b4.cmap.weight", "b8.torgb.weight", "D.b8.conv0.weight"):
        with pytest.raises(ValueError, match=foreign):
            from_nvidia(state | {foreign: torch.zeros(1)})
    with pytest.raises(ValueError, match="holds nothing"):
        from_nvidia({})


@pytest.mark.parametrize(("side", "count"), [(32, 21_507_073), (64, 23_407_361), (256, 24_001_089)])
def test_parameter_counts_of_a_single_image_equal_the_published(side, count):
    with torch.device("meta"):
        discriminator = StyleGAN2(to_four(side), 3, input="single", channel_base=16384)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == count


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("side", "base", "most"), [(256, 16384, 512), (32, 16384, 512), (1024, 32768, 512), (64, 512, 64)]
)
def test_names_and_shapes_say_which_options_of_ours_fit(architecture, side, base, most):
    state = {
        name: torch.empty(shape, device="meta") for name, shape in nvidia_shapes(side, base, architecture, most).items()
    }
    assert is_nvidias(state)
    largest, options = options_of(state)
    assert largest == side
    with torch.device("meta"):
        ours = StyleGAN2(to_four(largest), 3, **options)
    mapped = from_nvidia(state)
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in mapped.items()
    }


def test_names_of_others_are_not_nvidias():
    assert not is_nvidias(["blocks.0.conv0.weight", "b4.torgb.weight", "D.b4.conv.weight"])
