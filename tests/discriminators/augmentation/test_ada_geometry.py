"""Geometry of adaptive augmentation: each move against torch, kornia or hand, in both executions, on every level."""

import math

import kornia.geometry.transform as kornia_transform
import pytest
import torch
import torch.nn.functional as F
from ada_cases import generators, only, photo_like

from discriminators.augmentation.ada import augment
from discriminators.augmentation.draws import draw
from discriminators.augmentation.geometry import inverse_maps, move_exact, move_fast

EXECUTIONS = pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])


def rms(difference: torch.Tensor) -> float:
    return difference.square().mean().sqrt().item()


@EXECUTIONS
@pytest.mark.parametrize("size", [(32, 32), (48, 64)])
def test_the_identity_map_gives_the_image_back(exact, size):
    images = photo_like(2, 3, *size)
    maps = torch.eye(3, dtype=torch.float64)[:2].expand(2, 2, 3)
    moved = (move_exact if exact else move_fast)(images, maps)
    torch.testing.assert_close(moved, images, rtol=0, atol=1e-7)
    moved = (move_exact if exact else move_fast)(images.float(), maps)
    torch.testing.assert_close(moved, images.float(), rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("size", "is_exact"), [((32, 32), True), ((32, 40), True), ((31, 40), False), ((16, 16), False)]
)
def test_the_exact_execution_is_exact_from_32_pixels_on_and_bilinear_below(size, is_exact):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps = inverse_maps(only(2, rotate_pre=0.3, translate_fraction=[0.01, 0.02]), size)
    exact, fast = move_exact(images, maps), move_fast(images, maps)
    assert torch.equal(exact, fast) != is_exact
    assert rms(exact - fast) < 0.2


@EXECUTIONS
def test_a_whole_pixel_shift_rolls_the_image(exact):
    images = torch.rand(1, 3, 40, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # 5.3 and -2.8 pixels round to 5 right and 3 up
    (moved,) = augment(only(shift=[5.3 / 64, -2.8 / 40]), (images,), exact=exact)
    rolled = torch.roll(images, (-3, 5), (-2, -1))
    torch.testing.assert_close(moved[..., :-3, 5:], rolled[..., :-3, 5:], rtol=0, atol=1e-7)


@EXECUTIONS
def test_flips_and_quarter_turns_are_those_of_torch(exact):
    images = photo_like(1, 3, 40, 40)
    cases = [(only(flip=True), images.flip(-1))]
    cases += [(only(rotate90=k), torch.rot90(images, k, (-2, -1))) for k in (1, 2, 3)]
    for draws, expected in cases:
        (moved,) = augment(draws, (images,), exact=exact)
        # The wavelet is only nearly symmetric: 2% of the contrast.
        assert rms(moved - expected) < (0.006 if exact else 1e-12)
    (moved,) = augment(only(flip=True), (images[..., :32],), exact=exact)
    assert rms(moved - images[..., :32].flip(-1)) < (0.006 if exact else 1e-12)


def test_moves_are_kornias_where_it_samples_inside_the_image():
    images = photo_like(1, 3, 48, 64)
    center = torch.tensor([[31.5, 23.5]], dtype=torch.float64)
    factors = torch.tensor([[1.3, 1.3]], dtype=torch.float64)
    rotation = kornia_transform.get_rotation_matrix2d(center, torch.tensor([25.0], dtype=torch.float64), factors)
    expected = kornia_transform.warp_affine(images, rotation, (48, 64), align_corners=True)
    draws = only(scale=1.3, rotate_pre=math.radians(25))
    inside = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(augment(draws, (images,), exact=False)[0][inside], expected[inside])
    assert rms((augment(draws, (images,), exact=True)[0] - expected)[inside]) < 0.01


def test_moves_compose_in_the_papers_order():
    """Where the point (10, -6) from the centre goes, by hand."""
    size = (48, 64)
    draws = only(
        flip=True,
        rotate90=1,
        shift=[4 / 64, 2 / 48],
        scale=1.5,
        rotate_pre=0.3,
        anisotropy=1.2,
        rotate_post=-0.7,
        translate_fraction=[0.01, -0.02],
    )

    def turned(x: float, y: float, angle: float) -> tuple[float, float]:
        return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)

    x, y = -10.0, -6.0  # flipped
    x, y = y, -x  # a quarter turn counterclockwise: what was right is now at the top
    x, y = x + 4, y + 2
    x, y = 1.5 * x, 1.5 * y
    x, y = turned(x, y, 0.3)
    x, y = x * 1.2, y / 1.2
    x, y = turned(x, y, -0.7)
    x, y = x + 0.64, y - 0.96
    (inverse,) = inverse_maps(draws, size)
    back = inverse @ torch.tensor([x / 32, y / 24, 1], dtype=torch.float64)
    assert back.tolist() == pytest.approx([10 / 32, -6 / 24])


def test_maps_scale_areas_by_the_zoom_alone():
    draws = draw(generators(200), 1.0)
    maps = inverse_maps(draws, (64, 64))
    torch.testing.assert_close(torch.linalg.det(maps[:, :, :2]).abs(), draws.scale**-2)


def place_of(mass: torch.Tensor) -> torch.Tensor:
    """The centre of mass (y, x) in shares of the sides."""
    shares = [(torch.arange(side) + 0.5) / side for side in mass.shape]
    return torch.stack([mass.sum(1) @ shares[0].double(), mass.sum(0) @ shares[1].double()]) / mass.sum()


@EXECUTIONS
def test_one_draw_moves_all_levels_alike(exact):
    """A blob stays in the same place, in shares of the sides, on levels of 96x64 to 12x8."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(64.0), indexing="ij")
    blob = torch.exp(-((x - 38).square() + (y - 41).square()) / 60).double().expand(40, 1, -1, -1)
    levels = [blob] + [F.avg_pool2d(blob, 2**k) for k in (1, 2, 3)]
    draws = draw(generators(40, seed=3), 0.4, "bg")
    moved = augment(draws, tuple(levels), exact=exact)
    assert draws.moves.sum() > 30
    inside = 0
    for image in range(40):
        if moved[0][image, :, 8:-8, 8:-8].sum() < 0.995 * moved[0][image].sum():
            continue  # the blob left the image, or its mirror image came in
        places = [place_of(level[image, 0]) for level in moved]
        for place, level in zip(places[1:], moved[1:], strict=True):
            assert (place - places[0]).abs().max() < 0.3 / min(level.shape[2:])
        inside += 1
    assert inside >= 15


@EXECUTIONS
def test_pooling_and_moving_commute(exact):
    images = photo_like(6, 3, 64, 64)
    lossless = (only(6, flip=True), only(6, rotate90=1), only(6, shift=[8 / 64, -8 / 64]))
    for draws in (*lossless, draw(generators(6, seed=1), 0.5, "bg")):
        levels = tuple(F.avg_pool2d(images, k) if k > 1 else images for k in (1, 2, 4))
        moved = augment(draws, levels, exact=exact)
        for level, k in zip(moved[1:], (2, 4), strict=True):
            pooled = F.avg_pool2d(moved[0], k)
            # Coarse levels mirror at coarser pixels and interpolate over longer ways.
            loose = not any(draws is one for one in lossless)
            assert rms((level - pooled)[..., 4:-4, 4:-4]) < (0.03 if loose else 0.006)


def test_both_executions_see_the_same_draws_in_the_same_place():
    images = photo_like(24, 3, 64, 64)
    draws = draw(generators(24), 0.5, "bgc")
    exact, fast = (augment(draws, (images,), exact=choice)[0] for choice in (True, False))
    apart = (exact - fast).square().mean(dim=(1, 2, 3)).sqrt()
    contrast = fast.std(dim=(1, 2, 3))
    assert (apart < 0.25 * contrast).all()
    assert rms(exact - fast) < 0.06


def test_zooming_out_is_free_of_aliasing_in_the_exact_execution():
    """Stripes of two pixels, at a third of the size, are finer than the pixels: little but grey may remain."""
    stripes = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64).repeat(16).expand(1, 1, 64, 64)
    draws = only(scale=0.34)
    exact, fast = (augment(draws, (stripes,), exact=choice)[0][..., 20:-20, 20:-20].std() for choice in (True, False))
    assert exact < 0.1
    assert fast > 0.3


def test_far_outside_is_the_mirrored_image():
    ramp = torch.linspace(0, 1, 64, dtype=torch.float64).expand(1, 1, 64, 64)
    for exact in (True, False):
        (moved,) = augment(only(translate_fraction=[0.25, 0.0]), (ramp,), exact=exact)
        torch.testing.assert_close(moved[0, 0, 32, 4:12], ramp[0, 0, 0, 4:12].flip(0), rtol=0, atol=0.02)


@EXECUTIONS
def test_an_image_is_moved_alike_alone_and_in_a_batch(exact):
    images = photo_like(8, 3, 32, 32)
    draws = draw(generators(8), 0.8, "bg")
    together = augment(draws, (images,), exact=exact)[0]
    for index, generator in enumerate(generators(8)):
        alone = augment(draw([generator], 0.8, "bg"), (images[index : index + 1],), exact=exact)[0]
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-9)
