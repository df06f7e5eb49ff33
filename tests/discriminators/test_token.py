"""The token discriminator: its head, the encoder that it reads, and where gradients go."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from discriminators.token import Token
from frozen_stand_in import stand_in_encoder

SIZE = (32, 48)


def build(**options: object) -> Token:
    torch.manual_seed(0)
    return Token(stand_in_encoder(3), [SIZE, (16, 24)], 3, **{"hidden": 12, **options}).double()


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def gradient_of_logits(discriminator: Token, shown: torch.Tensor) -> torch.Tensor:
    shown = shown.clone().requires_grad_()
    logits = discriminator((shown,)).logits
    (gradient,) = torch.autograd.grad((logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum(), shown)
    return gradient


def test_a_patch_has_a_logit_at_its_place_from_its_own_token():
    """LayerNorm, linear, GELU, linear of the encoder's tokens of whole images; row 1, column 2 is patch 1 x 6 + 2."""
    discriminator = build()
    output = discriminator((images(),))
    with torch.no_grad():
        token = discriminator.encoder(images())[:, 1 + 1 * 6 + 2].double()
    norm, enter, _ = discriminator.hidden
    normed = (token - token.mean(1, keepdim=True)) / (token.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    hidden = F.gelu((normed * norm.weight + norm.bias) @ enter.weight.T + enter.bias)
    logit = hidden @ discriminator.out.weight[0] + discriminator.out.bias
    assert output.logits.shape == (2, 4, 6)
    torch.testing.assert_close(output.logits[:, 1, 2], logit)
    (features,) = output.features
    assert features.shape == (2, 12, 4, 6)
    torch.testing.assert_close(features[:, :, 1, 2], hidden)


def test_the_encoder_is_no_part_of_weights_or_state_and_stays_where_it_is():
    discriminator = build().to("meta")
    encoder = discriminator.encoder
    assert {name.partition(".")[0] for name in discriminator.state_dict()} == {"hidden", "out"}
    assert {name.partition(".")[0] for name, _ in discriminator.named_parameters()} == {"hidden", "out"}
    assert encoder not in set(discriminator.modules())
    discriminator.requires_grad_(False).eval()
    assert encoder.training
    assert all(each.requires_grad for each in encoder.parameters())
    assert {(each.device.type, each.dtype) for each in encoder.parameters()} == {("cpu", torch.float32)}


def test_it_reads_the_weights_that_the_encoder_now_has():
    discriminator = build()
    before = discriminator((images(),)).logits
    with torch.no_grad():
        discriminator.encoder.blocks[0].mlp.fc1.weight.mul_(1.5)
    assert not torch.equal(discriminator((images(),)).logits, before)


def test_no_gradient_reaches_the_encoders_weights_and_that_of_the_image_is_whole():
    discriminator = build()
    encoder = discriminator.encoder.double()
    learned = [each for each in encoder.parameters() if each.requires_grad]
    shown = images().double().requires_grad_()
    output = discriminator((shown,))
    gradients = torch.autograd.grad(
        output.logits.sum() + output.features[0].square().sum(), learned, allow_unused=True, retain_graph=True
    )
    assert all(each is None for each in gradients)
    assert all(each.requires_grad and each.grad is None for each in learned)
    # The same network as an ordinary one, its encoder a frozen copy of which nothing is cut.
    plain = copy.deepcopy(encoder).requires_grad_(False)
    logits = discriminator.out(discriminator.hidden(plain(shown)[:, 1:])).view(2, 4, 6)
    torch.testing.assert_close(output.logits, logits)
    (expected,) = torch.autograd.grad((logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum(), shown)
    torch.testing.assert_close(gradient_of_logits(discriminator, images().double()), expected)
    assert expected.abs().max() > 0


def test_a_frozen_encoder_passes_the_same_gradient_to_the_image():
    discriminator = build()
    before = gradient_of_logits(discriminator, images())
    discriminator.encoder.requires_grad_(False)
    assert torch.equal(gradient_of_logits(discriminator, images()), before)


def test_a_copy_has_a_head_of_its_own_on_the_same_encoder():
    discriminator = build()
    copied = copy.deepcopy(discriminator)
    assert copied.encoder is discriminator.encoder
    assert torch.equal(copied((images(),)).logits, discriminator((images(),)).logits)
    with torch.no_grad():
        copied.out.weight.add_(1)
    assert not torch.equal(copied.out.weight, discriminator.out.weight)


def test_copied_together_the_copy_reads_the_encoders_copy():
    discriminator = build()
    encoder, copied = copy.deepcopy((discriminator.encoder, discriminator))
    assert copied.encoder is encoder
    assert encoder is not discriminator.encoder


def test_with_a_spectral_norm_no_layer_of_the_head_stretches():
    discriminator = build(norm="spectral").eval()
    for layer in (discriminator.hidden[1], discriminator.out):
        assert isinstance(layer, nn.Linear)
        assert torch.linalg.matrix_norm(layer.weight, ord=2).item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hidden": 0}, "width 1 or more, not 0"), ({"norm": "batch"}, "choose from: spectral, none")],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_images_that_patches_do_not_tile_are_refused():
    with pytest.raises(ValueError, match="patches of 8 tile, not 36x32"):
        Token(stand_in_encoder(3), [(36, 32)], 3)
