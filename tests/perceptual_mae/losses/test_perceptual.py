"""Feature matching and style: hand-worked values, invariances, precision."""

import pytest
import torch
from torch import Tensor

from perceptual_mae.losses.perceptual import feature_matching, gram, style

F = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # (1, 2, 1, 2)
G = torch.tensor([[[[1.0, 2.0]], [[3.0, 2.0]]]])


def layers(images: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(images, channels, side, side, generator=generator, dtype=dtype)
        for channels, side in ((4, 8), (6, 4), (8, 2))
    ]


def test_values_worked_by_hand():
    assert gram(F)[0].tolist() == [[1.25, 2.75], [2.75, 6.25]]
    assert gram(G)[0].tolist() == [[1.25, 1.75], [1.75, 3.25]]
    assert feature_matching([F], [G]).item() == 0.5
    assert style([F], [G]).item() == 1.25
    assert style([F], [G], gram_reduction="sum_over_chw").item() == 5.0
    assert 0.05 * feature_matching([F], [G]).item() + 40 * style([F], [G]).item() == pytest.approx(50.025)


def test_layers_are_summed_and_each_is_a_mean():
    fake, real = layers(), layers(seed=1)
    singles = [feature_matching([f], [r]).item() for f, r in zip(fake, real, strict=True)]
    assert singles == pytest.approx([(f - r).abs().mean().item() for f, r in zip(fake, real, strict=True)])
    assert feature_matching(fake, real).item() == pytest.approx(sum(singles), rel=1e-6)
    styles = [style([f], [r]).item() for f, r in zip(fake, real, strict=True)]
    assert style(fake, real).item() == pytest.approx(sum(styles), rel=1e-6)


def test_gram_is_the_mean_product_of_channels_in_any_memory_layout():
    features = layers()[1]
    expected = torch.einsum("bchw,bdhw->bcd", features.double(), features.double()) / (6 * 4 * 4)
    for layout in (features, features.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(gram(layout), expected.float())


def test_style_forgets_where_features_are_but_feature_matching_does_not():
    fake = layers()[0]
    shuffled = fake.flatten(2)[..., torch.randperm(64, generator=torch.Generator().manual_seed(0))].view_as(fake)
    assert style([fake], [shuffled]).item() == pytest.approx(0, abs=1e-6)
    assert feature_matching([fake], [shuffled]).item() > 0.5


@pytest.mark.parametrize("loss", [feature_matching, style])
@pytest.mark.parametrize("images", [1, 2, 3, 5])
def test_a_batch_costs_the_mean_of_its_images(loss, images):
    fake, real = layers(images), layers(images, seed=1)
    singles = [loss([f[i : i + 1] for f in fake], [r[i : i + 1] for r in real]) for i in range(images)]
    assert loss(fake, real).item() == pytest.approx(torch.stack(singles).mean().item(), rel=1e-5)


@pytest.mark.parametrize("loss", [feature_matching, style])
def test_the_gradient_is_the_derivative_in_every_layer(loss):
    fake, real = layers(dtype=torch.float64), layers(seed=1, dtype=torch.float64)
    for layer in fake:
        layer.requires_grad_()
    assert torch.autograd.gradcheck(lambda *stack: loss(stack, real), fake)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("reduction", ["mean", "sum_over_chw"])
def test_style_is_what_gram_matrices_written_out_give_there_and_back(reduction, layout):
    stacks = [[layer.to(memory_format=layout).requires_grad_() for layer in layers(seed=seed)] for seed in (0, 1)]
    written_out = torch.zeros(())
    for fake, real in zip(*stacks, strict=True):
        difference = (gram(fake) - gram(real)).abs()
        written_out = written_out + (difference.mean() if reduction == "mean" else difference.sum((1, 2)).mean())
    ours = style(*stacks, gram_reduction=reduction)
    torch.testing.assert_close(ours, written_out)
    leaves = [layer for stack in stacks for layer in stack]
    slow = torch.autograd.grad(written_out, leaves)
    for gradient, expected in zip(torch.autograd.grad(ours, leaves), slow, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)
        assert gradient.is_contiguous(memory_format=layout)


def test_style_can_be_differentiated_in_real_and_fake_and_twice():
    fake, real = (layers(2, seed, torch.float64)[2].requires_grad_() for seed in (0, 1))

    def loss(fake: Tensor, real: Tensor) -> Tensor:
        return style([fake], [real])

    assert torch.autograd.gradcheck(loss, (fake, real))
    assert torch.autograd.gradgradcheck(loss, (fake, real))


@pytest.mark.parametrize("loss", [feature_matching, style])
def test_identical_features_cost_nothing_and_keep_a_finite_gradient(loss):
    fake = [layer.requires_grad_() for layer in layers()]
    value = loss(fake, [layer.detach() for layer in fake])
    gradients = torch.autograd.grad(value, fake)
    assert value.item() == 0
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gram_of_large_half_precision_features_stays_finite_and_exact(dtype):
    features = torch.full((1, 4, 112, 112), 3.0, dtype=dtype, requires_grad=True)  # sums to 112,896 > 65,504
    with torch.autocast("cpu", dtype=dtype):
        matrices = gram(features)
    assert matrices.dtype == torch.float32
    assert torch.equal(matrices, torch.full((1, 4, 4), 2.25))
    matrices.sum().backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("loss", [feature_matching, style])
def test_autocast_changes_nothing(loss):
    fake, real = [layer.requires_grad_() for layer in layers()], layers(seed=1)
    value = loss(fake, real)
    gradients = torch.autograd.grad(value, fake)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast_value = loss(fake, real)
    assert torch.equal(value, cast_value)
    for gradient, cast_gradient in zip(gradients, torch.autograd.grad(cast_value, fake), strict=True):
        assert torch.equal(gradient, cast_gradient)


@pytest.mark.parametrize("loss", [feature_matching, style])
def test_mismatched_stacks_are_refused(loss):
    fake = layers()
    for real in (fake[:2], [layer[:1] for layer in fake], fake[::-1]):
        with pytest.raises(ValueError, match="same layers"):
            loss(fake, real)
    with pytest.raises(ValueError, match="at least one"):
        loss([], [])
    with pytest.raises(ValueError, match="choose from"):
        style(fake, fake, gram_reduction="sum")
