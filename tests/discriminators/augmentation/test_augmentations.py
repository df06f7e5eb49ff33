"""What every augmentation of the table promises."""

import pytest
import torch
import torch.nn.functional as F
from ada_cases import generators, photo_like

from discriminators import AUGMENTATIONS, Augmentation

STRONG = {"ada": {"pipeline": "bgcfnc", "p": 0.9}}
"""Options under which the images of these tests are changed, for kinds that begin with none."""

every_augmentation = pytest.mark.parametrize("kind", sorted(AUGMENTATIONS))


def build(kind: str, size: tuple[int, int] = (32, 32), channels: int = 3) -> Augmentation:
    return AUGMENTATIONS[kind]([size, (size[0] // 2, size[1] // 2)], channels, **STRONG.get(kind, {}))


def pyramid(count: int, size: tuple[int, int] = (32, 32), channels: int = 3) -> tuple[torch.Tensor, ...]:
    images = photo_like(count, channels, *size).float()
    return (images, F.avg_pool2d(images, 2))


@every_augmentation
def test_it_keeps_the_protocol_and_its_state_can_be_saved(kind):
    augmentation, again = build(kind), build(kind)
    assert isinstance(augmentation, Augmentation)
    assert isinstance(AUGMENTATIONS[kind]([(32, 32)], 3), Augmentation)
    augmentation.follow(0.5)
    state = augmentation.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    again.load_state_dict(state)
    levels = pyramid(4)
    shown = [each.apply(each.draw(generators(4)), levels) for each in (augmentation, again)]
    assert all(torch.equal(*level) for level in zip(*shown, strict=True))


@every_augmentation
@pytest.mark.parametrize(("size", "channels"), [((32, 32), 3), ((48, 64), 1), ((96, 64), 3)])
def test_every_level_comes_out_changed_finite_and_of_its_own_shape(kind, size, channels):
    augmentation, levels = build(kind, size, channels), pyramid(4, size, channels)
    shown = augmentation.apply(augmentation.draw(generators(4)), levels)
    assert [level.shape for level in shown] == [level.shape for level in levels]
    for before, after in zip(levels, shown, strict=True):
        assert after.isfinite().all()
        assert not torch.allclose(after, before, atol=0.01)


@every_augmentation
def test_an_image_is_augmented_alike_alone_and_in_a_batch_real_and_fake(kind):
    augmentation, levels = build(kind), pyramid(5)
    draws = augmentation.draw(generators(5))
    assert len(draws) == 5
    together = augmentation.apply(draws, levels)
    for level, again in zip(together, augmentation.apply(draws, levels), strict=True):
        assert torch.equal(level, again)
    for index, generator in enumerate(generators(5)):
        part = slice(index, index + 1)
        alone = augmentation.apply(augmentation.draw([generator]), tuple(level[part] for level in levels))
        for single, batch in zip(alone, together, strict=True):
            torch.testing.assert_close(single, batch[part], rtol=0, atol=1e-5)


@every_augmentation
def test_autocast_changes_nothing_and_half_precision_comes_back_as_it_came(kind):
    augmentation, (images, _) = build(kind), pyramid(2)
    draws = augmentation.draw(generators(2))
    plain = augmentation.apply(draws, (images,))[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmentation.apply(draws, (images,))[0], plain)
    half = augmentation.apply(draws, (images.bfloat16(),))[0]
    assert half.dtype == torch.bfloat16
    assert (half.float() - plain).abs().mean() < 0.02


@every_augmentation
def test_first_and_second_derivatives_are_those_of_finite_differences(kind):
    augmentation, images = build(kind, (8, 8)), photo_like(2, 3, 8, 8).requires_grad_()
    draws = augmentation.draw(generators(2, seed=1))

    def shown(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(level.square() for level in augmentation.apply(draws, (images, F.avg_pool2d(images, 2))))

    assert torch.autograd.gradcheck(shown, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(shown, images, fast_mode=True)


@every_augmentation
def test_another_number_of_images_is_refused(kind):
    augmentation = build(kind)
    with pytest.raises(ValueError, match="3 images but draws for 2"):
        augmentation.apply(augmentation.draw(generators(2)), pyramid(3))
