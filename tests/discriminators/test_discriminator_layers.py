"""Equalised layers, the blur and the minibatch's deviation against hand-worked values and direct forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import ON_WIDE_VECTORS
from discriminators.layers import (
    Blur,
    EqualizedConv2d,
    EqualizedLinear,
    blur_by_products,
    check_group,
    minibatch_stddev,
)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- Minibatch deviation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "expected"), [(1, [0.0] * 4), (2, [1.0, 2.0, 1.0, 2.0]), (4, [1.870829] * 4), ("batch", [1.870829] * 4)]
)
def test_minibatch_stddev_of_four_numbers_worked_by_hand(group, expected):
    images = torch.tensor([0.0, 1.0, 2.0, 5.0]).view(4, 1, 1, 1)
    appended = minibatch_stddev(images, group)
    assert torch.equal(appended[:, :1], images)
    torch.testing.assert_close(appended[:, 1].flatten(), torch.tensor(expected), atol=1.1e-4, rtol=1e-6)


@pytest.mark.parametrize(
    ("batch", "group", "size"),
    [(1, 4, 1), (2, 4, 2), (3, 4, 3), (5, 4, 1), (6, 4, 3), (8, 4, 4), (12, 4, 4), (12, 5, 4), (6, "batch", 6)],
)
def test_groups_are_strided_and_as_large_as_divides_the_batch(batch, group, size):
    images = random(batch, 3, 2, 5)
    maps = minibatch_stddev(images, group)[:, 3]
    for index in range(batch):
        members = images[index % (batch // size) :: batch // size]
        assert len(members) == size
        expected = (members.var(dim=0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(maps[index], expected.expand(2, 5))


@pytest.mark.parametrize(("group", "images", "is_equal"), [(4, 4, False), (2, 4, True), (1, 4, True), (4, 8, True)])
def test_minibatch_stddev_of_two_processes_is_that_of_one_where_groups_are_whole(group, images, is_equal):
    images = torch.randn(images, 3, 2, 2, dtype=torch.float64)
    whole = minibatch_stddev(images, group)
    apart = torch.empty_like(whole)
    for first in range(2):  # a process has every second image
        apart[first::2] = minibatch_stddev(images[first::2], group)
    assert torch.allclose(apart, whole, rtol=0, atol=1e-14) == is_equal


def test_minibatch_stddev_is_computed_in_float32_under_bfloat16():
    images = (100 + random(4, 8, 3, 3, dtype=torch.float32)).bfloat16()
    exact = minibatch_stddev(images.float())[:, -1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        appended = minibatch_stddev(images)
    assert appended.dtype == torch.bfloat16
    assert torch.equal(appended[:, -1], exact.bfloat16())


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_minibatch_stddev_has_finite_gradients_even_among_equal_images(batch):
    images = torch.full((batch, 2, 2, 2), 0.3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(minibatch_stddev(images)[:, -1].sum(), images, create_graph=True)
    (second,) = torch.autograd.grad((gradient * random(*gradient.shape)).sum(), images)
    assert gradient.isfinite().all()
    assert second.isfinite().all()


def test_minibatch_stddev_passes_first_and_second_gradient_checks():
    images = random(4, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(minibatch_stddev, images)
    assert torch.autograd.gradgradcheck(minibatch_stddev, images)


def test_groups_of_no_images_are_refused():
    for group in (0, -4, "all", 2.5):
        with pytest.raises(ValueError, match="minibatch_group of msg_gan"):
            check_group("msg_gan", group)
    check_group("msg_gan", "batch")


# --- Blur ----------------------------------------------------------------------------------------------------------


def test_blur_kernel_has_the_published_rows_and_weighs_one():
    kernel = Blur().kernel
    rows = [[1.0, 3.0, 3.0, 1.0], [3.0, 9.0, 9.0, 3.0], [3.0, 9.0, 9.0, 3.0], [1.0, 3.0, 3.0, 1.0]]
    assert torch.equal(kernel.squeeze() * 64, torch.tensor(rows))
    assert kernel.sum() == 1
    assert not Blur().state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(8, 8), (7, 12)])
def test_blurring_and_slicing_is_exactly_the_strided_convolution_with_its_gradients(size, dtype):
    images = (8 * random(2, 3, *size)).round().to(dtype).requires_grad_()  # whole numbers: no rounding in any order
    blur = Blur().to(dtype)
    ours = blur(images, padding=1, step=2)
    direct = F.conv2d(images, blur.kernel.expand(3, 1, 4, 4), stride=2, padding=1, groups=3)
    assert torch.equal(ours, direct)

    toward = (8 * random(*ours.shape, seed=1)).round().to(dtype)
    first = [torch.autograd.grad((y**2 * toward).sum(), images, create_graph=True)[0] for y in (ours, direct)]
    assert torch.equal(*first)
    second = [torch.autograd.grad((gradient * images.detach()).sum(), images)[0] for gradient in first]
    assert torch.equal(*second)


def test_the_blur_passes_first_and_second_gradient_checks():
    blur, images = Blur().double(), random(1, 2, 4, 6).requires_grad_()
    for padding, step in ((1, 2), (2, 1)):
        assert torch.autograd.gradcheck(lambda x, p=padding, s=step: blur(x, padding=p, step=s), images)
        assert torch.autograd.gradgradcheck(lambda x, p=padding, s=step: blur(x, padding=p, step=s), images)


@pytest.mark.parametrize(("padding", "step"), [(1, 2), (2, 1)])
def test_under_autocast_the_blur_is_the_plain_convolution_there_and_back(padding, step):
    images = random(2, 3, 8, 8, dtype=torch.float32).requires_grad_()
    blur = Blur()
    with torch.autocast("cpu", torch.bfloat16):
        ours = blur(images, padding=padding, step=step)
        direct = F.conv2d(images, blur.kernel.expand(3, 1, 4, 4), padding=padding, groups=3)[:, :, ::step, ::step]
    assert ours.dtype == direct.dtype == torch.bfloat16
    gradients = [torch.autograd.grad(y.float().square().sum(), images)[0] for y in (ours, direct)]
    assert gradients[0].dtype == torch.float32
    if ON_WIDE_VECTORS:
        assert torch.equal(ours, direct)
        torch.testing.assert_close(*gradients)
    else:  # bfloat16 is emulated, and the two convolutions are added up in different orders
        torch.testing.assert_close(ours, direct, rtol=0, atol=2**-7 * float(direct.detach().abs().max()))
        torch.testing.assert_close(*gradients, rtol=0, atol=2**-6 * float(gradients[1].abs().max()))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("padding", "step"), [(1, 2), (2, 1)])
def test_gradients_of_the_blur_are_in_memory_as_the_images_do(padding, step, layout):
    images = random(2, 3, 8, 8).to(memory_format=layout).requires_grad_()
    blurred = Blur().double()(images, padding=padding, step=step)
    (gradient,) = torch.autograd.grad(blurred.square().sum(), images)
    assert gradient.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("size", "padding", "step"), [((32, 32), 2, 1), ((7, 12), 1, 2), ((8, 5), 2, 2)])
def test_the_blur_of_gpus_is_that_of_cpus_with_its_first_and_second_gradients(layout, size, padding, step):
    images = random(2, 3, *size).to(memory_format=layout).requires_grad_()
    both = [Blur().double()(images, padding, step), blur_by_products(images, padding, step)]
    torch.testing.assert_close(*both, rtol=0, atol=1e-14)
    assert both[1].is_contiguous(memory_format=layout)
    toward = random(*both[0].shape, seed=1)
    first = [torch.autograd.grad((y**2 * toward).sum(), images, create_graph=True)[0] for y in both]
    torch.testing.assert_close(*first, rtol=0, atol=1e-13)
    second = [torch.autograd.grad((gradient * images.detach()).sum(), images)[0] for gradient in first]
    torch.testing.assert_close(*second, rtol=0, atol=1e-12)


class Convolutions(TorchDispatchMode):
    """Counts convolutions, there and back."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += "convolution" in str(function)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("width", [1, 5])
def test_the_blurs_second_gradient_is_two_convolutions_however_many_channels_there_are(width):
    images = random(2, width, 8, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(
        Blur().double()(images, padding=2).square().sum(), images, create_graph=True
    )  # forward and back, and both again
    with Convolutions() as convolutions:
        gradient.square().sum().backward()
    assert convolutions.count == 2


def test_an_image_of_one_colour_stays_it_away_from_the_border():
    halved = Blur()(torch.full((1, 2, 12, 12), 0.7), padding=1, step=2)
    assert halved.shape == (1, 2, 6, 6)
    torch.testing.assert_close(halved[:, :, 1:-1, 1:-1], torch.full((1, 2, 4, 4), 0.7))


@pytest.mark.parametrize("side", [4, 8, 14, 224])
def test_padding_two_before_a_strided_3x3_convolution_halves_the_side(side):
    convolution = EqualizedConv2d(1, 2, 3, stride=2)
    assert convolution(Blur()(torch.zeros(1, 1, side, side), padding=2)).shape == (1, 2, side // 2, side // 2)


# --- Equalised layers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 64])  # the factor goes to the smaller of weights and images
@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize(("gain", "weight_gain"), [(1.0, 1.0), (math.sqrt(2), 1.0), (1.0, math.sqrt(2)), (0.5, 3.0)])
def test_equalised_convolution_scales_weights_by_the_root_of_its_fan_in(images, activate, gain, weight_gain):
    layer = EqualizedConv2d(6, 5, 3, padding=1, activate=activate, gain=gain, weight_gain=weight_gain).double()
    layer.bias.data.copy_(random(5, seed=2))
    inputs = random(images, 6, 2, 2)
    expected = F.conv2d(inputs, layer.weight * weight_gain / math.sqrt(6 * 9), layer.bias, padding=1)
    expected = gain * (F.leaky_relu(expected, 0.2) if activate else expected)
    torch.testing.assert_close(layer(inputs), expected)


@pytest.mark.parametrize("batch", [2, 50])
@pytest.mark.parametrize("activate", [True, False])
def test_equalised_linear_scales_weights_by_the_root_of_its_fan_in(batch, activate):
    layer = EqualizedLinear(16, 3, activate=activate, gain=1.5).double()
    layer.bias.data.copy_(random(3, seed=2))
    inputs = random(batch, 16)
    expected = inputs @ layer.weight.T / 4 + layer.bias
    expected = 1.5 * (F.leaky_relu(expected, 0.2) if activate else expected)
    torch.testing.assert_close(layer(inputs), expected)


def test_equalised_weights_start_at_unit_variance_and_biases_at_zero():
    torch.manual_seed(0)
    convolution, linear = EqualizedConv2d(64, 64, 3), EqualizedLinear(256, 128)
    for layer in (convolution, linear):
        assert layer.weight.std().item() == pytest.approx(1, abs=0.02)
        assert not layer.bias.any()
    assert EqualizedConv2d(64, 64, 3, weight_gain=math.sqrt(2)).scale == pytest.approx(math.sqrt(2 / 576))
    assert linear.scale == pytest.approx(1 / 16)


def test_without_the_run_time_factor_a_layer_starts_as_the_same_function():
    layers = []
    for equalized in (True, False):
        torch.manual_seed(0)
        layers.append(EqualizedConv2d(8, 8, 3, equalized=equalized, weight_gain=math.sqrt(2)))
    images = random(2, 8, 5, 5, dtype=torch.float32)
    torch.testing.assert_close(layers[0](images), layers[1](images))
    assert layers[1].scale == 1
    assert layers[1].weight.std() < 0.3


def test_the_variance_of_maps_survives_a_stack_of_stylegan2_layers():
    torch.manual_seed(0)
    hidden = torch.randn(8, 64, 16, 16)
    for _ in range(6):
        hidden = EqualizedConv2d(64, 64, 3, padding=1, gain=math.sqrt(2))(hidden)
    assert 0.3 < hidden[:, :, 6:-6, 6:-6].square().mean() < 3
