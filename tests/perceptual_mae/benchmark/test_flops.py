"""What a step may cost, exactly and on any machine: every pass through a network is accounted for.

F is a discriminator's forward, g the generator's, per batch. A backward pass costs one more F for the weights and one
more for the inputs, less what has no weights (blurs) and what starts at images that need no gradient (first layers).
"""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from conftest import by_hand, debug_trainer, random_batches, real_levels, tiered
from discriminators.layers import Blur, EqualizedConv2d, EqualizedLinear
from perceptual_mae.benchmark.flops_memory import count_flops
from perceptual_mae.generator.reconstruction import Reconstruction
from perceptual_mae.generator.vit import PatchEmbed
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.trainer import Trainer

METHODS = ("ls_gan_p", "msg_gan_p", "stylegan2_ada_p")
PLAIN, BALANCE, R1 = 1, 8, 16
"""Numbers of steps in which nothing lazy is due; the balance (and path length); and R1 beside them."""

GRAMS = 3
"""Gram matrices of fake and real, and a product on the way back to the fake."""

FIRST_LAYERS = ("from_rgb", "from_pixels", "stages.0.0")
"""Ends of the names of a discriminator's layers that read images."""

# The fused attention of other precisions runs some products again on its way back.
OPTIONS = ("training.precision=bf16", "training.batch_size=4", "penalties.path_length=null")


@dataclass
class Account:
    """Operations of one batch: the discriminator's layers, its blurs and the way back through them, and so on."""

    layers: int
    blurs: int
    blurs_back: int
    first_layers: int
    g: int
    patch_embedding: int
    to_latent: int
    grams: int

    @property
    def forward(self) -> int:
        """F: forward through the discriminator."""
        return self.layers + self.blurs

    @property
    def back(self) -> int:
        """From its logits to the image."""
        return self.layers + self.blurs_back

    @property
    def learning(self) -> int:
        """From real and fake logits to the weights, in which the images need no gradient."""
        return 2 * self.layers + 2 * (self.back - self.first_layers)

    @property
    def generator(self) -> int:
        """Forward and back."""
        return 3 * self.g - self.patch_embedding


def account(trainer: Trainer) -> Account:
    (batch,) = random_batches(4)
    images, mask = batch.to("cpu").images, trainer.draw_masks(batch, TrainingProgress(1, 0, 0.0))
    layers: dict[str, int] = {}
    blurs, blurs_back, embedded = [], [], []

    def blurred(_: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, int], __: Tensor) -> None:
        (maps,) = inputs
        height, width = (side + 2 * options["padding"] - 3 for side in maps.shape[-2:])  # then pixels are dropped
        blurs.append(2 * 16 * maps.shape[0] * maps.shape[1] * height * width)
        blurs_back.append(2 * 16 * maps.numel())

    def embed(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        embedded.append(2 * output.numel() * inputs[0].shape[-1])

    def passed(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # Two for a multiplication and an addition: as many as weights go into a number that comes out.
        outputs = output.numel() * (
            inputs[0].shape[1] if isinstance(layer, EqualizedLinear) else layer.weight[0].numel()
        )
        layers[name] = layers.get(name, 0) + 2 * outputs

    hooks = [
        module.register_forward_hook(embed)
        for module in trainer.unwrapped_generator.modules()
        if isinstance(module, PatchEmbed)
    ]
    for name, module in trainer.unwrapped_discriminator.named_modules():
        if isinstance(module, Blur):
            hooks.append(module.register_forward_hook(blurred, with_kwargs=True))
        elif isinstance(module, EqualizedConv2d | EqualizedLinear | nn.Conv2d):
            hooks.append(module.register_forward_hook(partial(passed, name)))
    draw_part = trainer.adversary.shown_parts
    part = draw_part(batch.indices, 0) if draw_part is not None else None
    output = trainer.discriminator(trainer.adversary.input.real(images, part))
    made: list[Reconstruction] = []
    g = count_flops(lambda: made.append(trainer.generator(images, mask)))
    for hook in hooks:
        hook.remove()
    everything = torch.stack([level.sum() for level in made[0].pyramid]).sum()
    return Account(
        sum(layers.values()),
        sum(blurs),
        sum(blurs_back),
        sum(
            value
            for name, value in layers.items()
            if name.endswith(("from_rgb", "from_pixels")) or name == "stages.0.0"
        ),
        g,
        sum(embedded),
        count_flops(lambda: torch.autograd.grad(everything, made[0].latent)),
        sum(2 * layer.numel() * layer.shape[1] for layer in output.features),
    )


def flops(trainer: Trainer, epoch: int, step: int) -> int:
    return count_flops(lambda: trainer.step(random_batches(4), TrainingProgress(epoch, step, 0.5)))


@pytest.mark.parametrize("method", tiered(METHODS))
def test_the_counter_agrees_with_the_shapes_of_the_layers(method: str) -> None:
    trainer = debug_trainer(method, *OPTIONS)
    images = torch.rand(4, 3, 32, 32)
    assert count_flops(lambda: trainer.discriminator(real_levels(trainer, images))) == account(trainer).forward


ENCODERS = {
    "plain": (),
    "options": ("generator.layer_scale=0.1", "generator.drop_path=0.5", "generator.positions=learned"),
    "relative": ("generator.relative_positions=true", "generator.qkv_bias=false"),
    "mask_tokens": ("generator.encoder_mask_tokens=true",),
}


@pytest.mark.parametrize("form", ENCODERS)
def test_a_plain_step_is_three_forwards_of_the_generator(form: str) -> None:
    trainer = debug_trainer("mse", *ENCODERS[form], *OPTIONS[:2])
    (batch,) = random_batches(4)
    images, mask = batch.to("cpu").images, trainer.draw_masks(batch, TrainingProgress(1, 0, 0.0))
    g = count_flops(lambda: trainer.generator(images, mask))
    embedded = mask.numel() if form == "mask_tokens" else int((~mask).sum())
    embedding = 2 * embedded * trainer.unwrapped_generator.encoder.patch_embed.proj.weight.numel()
    assert flops(trainer, 1, PLAIN) == flops(trainer, 2, PLAIN) == 3 * g - embedding


def test_mask_tokens_make_the_encoder_dear_and_other_options_cost_no_product() -> None:
    costs = {}
    for form, options in ENCODERS.items():
        generator = debug_trainer("mse", *options).unwrapped_generator
        images, mask = torch.rand(4, 3, 32, 32), (torch.arange(16) < 12).expand(4, -1)
        costs[form] = count_flops(lambda network=generator, x=images, m=mask: network(x, m))
    assert costs["plain"] == costs["options"] == costs["relative"]
    tokens, width, depth = 4 * 12, 32, 2  # 12 more patches in each of 4 images; attention's rows grow, too
    linear = 2 * tokens * (depth * 12 * width**2 + 192 * width + 32 * width)
    attention = 4 * 4 * depth * width * (17**2 - 5**2)
    assert costs["mask_tokens"] - costs["plain"] == linear + attention


@pytest.mark.parametrize("method", tiered(METHODS))
def test_a_lean_step_is_seven_forwards_of_the_discriminator_and_three_of_the_generator(method: str) -> None:
    trainer = debug_trainer(method, "training.order=lean", *OPTIONS)
    cost = account(trainer)
    odd, even = flops(trainer, 1, PLAIN), flops(trainer, 2, PLAIN)
    assert (
        odd == 2 * cost.forward + cost.learning + cost.back + cost.generator
    )  # real, fake; back to weights, to the image
    assert even == odd + GRAMS * cost.grams
    assert 6.5 * cost.forward + 2.9 * cost.g < odd < 7.1 * cost.forward + 3 * cost.g  # as round numbers


@pytest.mark.parametrize("method", tiered(METHODS))
def test_a_step_in_turns_is_two_forwards_more_where_features_are_compared_and_else_one(method: str) -> None:
    trainer = debug_trainer(method, "training.order=sequential", *OPTIONS)
    cost = account(trainer)
    odd, even = flops(trainer, 1, PLAIN), flops(trainer, 2, PLAIN)
    lean = 2 * cost.forward + cost.learning + cost.back + cost.generator
    assert odd == lean + cost.forward  # the fake is seen again
    assert even == lean + 2 * cost.forward + GRAMS * cost.grams  # and so is the real, without a graph
    assert even < 9.1 * cost.forward + 3 * cost.g + GRAMS * cost.grams


@pytest.mark.parametrize("order", ["lean", "sequential"])
@pytest.mark.parametrize("method", tiered(METHODS))
def test_the_balance_costs_a_way_to_the_decoders_input_for_each_of_two_terms_and_one_back_through_the_discriminator(
    method: str, order: str
) -> None:
    trainer = debug_trainer(method, f"training.order={order}", "training.log_every=1000", *OPTIONS)
    cost = account(trainer)
    odd, even = (flops(trainer, epoch, BALANCE) - flops(trainer, epoch, PLAIN) for epoch in (1, 2))
    assert odd == even == 2 * cost.to_latent + cost.back


@pytest.mark.parametrize("order", ["lean", "sequential"])
@pytest.mark.parametrize("method", tiered(METHODS))
def test_r1_is_three_forwards_of_the_discriminator(method: str, order: str) -> None:
    r1 = "penalties.r1.gamma=auto"
    trainer = debug_trainer(method, r1, f"training.order={order}", "training.log_every=1000", *OPTIONS)
    cost = account(trainer)
    # To the image, once more along that way, and to the weights.
    expected = cost.back + cost.forward + cost.layers
    # The way back starts at ones, which need no gradient: the last layer is spared once, if it is a plain product.
    assert expected - 0.001 * cost.forward <= flops(trainer, 1, R1) - flops(trainer, 1, BALANCE) <= expected


@pytest.mark.parametrize("order", ["lean", "sequential"])
def test_path_length_costs_in_proportion_to_its_share_of_the_images(order: str) -> None:
    options = (f"training.order={order}", "training.log_every=1000", *OPTIONS[:2])

    def cost(path_length: str) -> int:
        trainer = debug_trainer("stylegan2_ada_p", f"penalties.path_length{path_length}", *options)
        return flops(trainer, 1, 4)  # nothing else is due

    without = cost("=null")
    one, two, four = (cost(f".batch_share={share}") - without for share in (0.25, 0.5, 1))
    assert (two, four) == (2 * one, 4 * one)
    assert one > 0


@pytest.mark.parametrize("order", ["lean", by_hand("sequential")])
@pytest.mark.parametrize("method", tiered(METHODS))
def test_r1_of_a_share_of_the_batch_costs_its_share_of_six_forwards(method: str, order: str) -> None:
    options = (f"training.order={order}", "training.log_every=1000", *OPTIONS)

    def cost(share: str) -> int:
        trainer = debug_trainer(method, f"penalties.r1={{gamma: auto{share}}}", *options)
        return flops(trainer, 1, R1) - flops(trainer, 1, BALANCE)

    one, two = (cost(f", batch_share: {share}") for share in (0.25, 0.5))
    assert two == 2 * one
    whole = account(debug_trainer(method, *options))
    # Of all images it is three, and rides on the pass of the loss; here forward and back come on top.
    expected = (cost("") + whole.forward + whole.layers + whole.back - whole.first_layers) / 4
    assert one == pytest.approx(expected, abs=0.001 * whole.forward)


@pytest.mark.parametrize("order", ["lean", by_hand("sequential")])
@pytest.mark.parametrize("method", tiered(METHODS))
def test_a_share_of_the_images_costs_its_share_of_the_discriminators_passes(method: str, order: str) -> None:
    group = ["discriminator.minibatch_group=2"] * (method != "ls_gan_p")
    options = (method, f"training.order={order}", "training.log_every=1000", *group, *OPTIONS)
    whole, half = (debug_trainer(*options, f"discriminator.batch_share={share}") for share in (1, 0.5))
    generator = account(whole).generator
    for epoch in (1, 2):
        assert flops(half, epoch, PLAIN) - generator == (flops(whole, epoch, PLAIN) - generator) / 2
        saved = flops(whole, epoch, BALANCE) - flops(half, epoch, BALANCE)
        assert saved == (flops(whole, epoch, PLAIN) - generator) / 2 + account(whole).back / 2


@pytest.mark.parametrize("order", ["lean", by_hand("sequential")])
@pytest.mark.parametrize("method", tiered(METHODS))
def test_between_its_updates_the_discriminator_costs_a_pass_and_the_way_back_and_one_more_pass_for_features(
    method: str, order: str
) -> None:
    options = (method, f"training.order={order}", "training.log_every=1000", *OPTIONS)
    trainer, often = debug_trainer(*options, "discriminator.every=2"), debug_trainer(*options)
    cost = account(often)
    assert flops(trainer, 1, PLAIN) == cost.forward + cost.back + cost.generator
    assert flops(trainer, 2, PLAIN) == flops(trainer, 1, PLAIN) + cost.forward + GRAMS * cost.grams
    assert flops(trainer, 1, 2) == flops(often, 1, 2)  # an update


@pytest.mark.parametrize("order", ["lean", by_hand("sequential")])
@pytest.mark.parametrize("method", ["ls_gan_p", "stylegan2_ada_p"])
def test_a_square_costs_what_an_image_of_its_size_does(method: str, order: str) -> None:
    single = ["discriminator.input=single"] * (method == "stylegan2_ada_p")
    options = (f"training.order={order}", "training.log_every=1000", *OPTIONS)
    whole, cut = (debug_trainer(method, *single, *more, *options) for more in ((), ("discriminator.crop=16",)))
    cost = account(cut)
    expected = 2 * cost.forward + cost.learning + cost.back + cost.generator
    assert flops(cut, 1, PLAIN) == expected + (cost.forward if order == "sequential" else 0)
    assert cost.forward < 0.8 * account(whole).forward  # of StyleGAN2 the largest block alone is left out


@pytest.mark.parametrize("method", ["ls_gan_p", "stylegan2_ada_p"])
def test_space_to_depth_is_accounted_for_and_cheaper(method: str) -> None:
    plain, stem = (
        debug_trainer(method, f"discriminator.stem={each}", "training.order=lean", *OPTIONS)
        for each in ("plain", "space_to_depth")
    )
    cost = account(stem)
    expected = 2 * cost.forward + cost.learning + cost.back + cost.generator
    assert flops(stem, 1, PLAIN) == expected
    assert cost.forward < 0.8 * account(plain).forward
