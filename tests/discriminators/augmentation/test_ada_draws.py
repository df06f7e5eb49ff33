"""Draws of adaptive augmentation: how often each operation acts, how strongly, and what a draw depends on."""

import math

import pytest
import torch
from ada_cases import generators

from discriminators.augmentation.draws import _COLUMNS as COLUMNS
from discriminators.augmentation.draws import BAND_POWER, PIPELINES, Draws, draw

COUNT = 10_000


@pytest.fixture(scope="module")
def draws_at():
    """10,000 draws of the whole pipeline at a probability; the stream of an image is the same for all of them."""
    cache: dict[float, Draws] = {}

    def at(p: float) -> Draws:
        if p not in cache:
            cache[p] = draw(generators(COUNT, seed=1), p, "bgcfnc")
        return cache[p]

    return at


def assert_frequency(happened: torch.Tensor, probability: float) -> None:
    """The share of draws lies within 3 standard deviations of the probability."""
    deviation = math.sqrt(probability * (1 - probability) / COUNT)
    assert abs(happened.double().mean().item() - probability) <= 3 * deviation


# p: flip or luma flip, a turn of the image, each rotation, nothing at all in blit, bg, bgc
TABLE = {
    0.1: (0.05, 0.075, 0.0513, 0.7909, 0.5189, 0.3234),
    0.2: (0.10, 0.15, 0.1056, 0.6120, 0.2507, 0.0924),
    0.4: (0.20, 0.30, 0.2254, 0.3360, 0.0435, 0.0045),
    0.6: (0.30, 0.45, 0.3675, 0.1540, 0.0039, 7.1e-5),
    0.8: (0.40, 0.60, 0.5528, 0.0480, 8.0e-5, 7.4e-8),
    1.0: (0.50, 0.75, 1.0, 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("p", TABLE)
def test_operations_act_as_often_as_the_paper_says(draws_at, p):
    flip, turn, rotation, *_ = TABLE[p]
    draws = draws_at(p)
    assert_frequency(draws.flip, flip)
    assert_frequency(draws.luma_flip, flip)
    assert_frequency(draws.rotate90 != 0, turn)
    assert_frequency(draws.rotate_pre != 0, rotation)
    assert_frequency(draws.rotate_post != 0, rotation)
    for certain in (
        "shift",
        "scale",
        "anisotropy",
        "translate_fraction",
        "brightness",
        "contrast",
        "hue",
        "saturation",
        "noise",
    ):
        values = getattr(draws, certain)
        neutral = 1.0 if certain in ("scale", "anisotropy", "contrast", "saturation") else 0.0
        assert_frequency((values if values.ndim == 1 else values[:, 0]) != neutral, p)
    assert_frequency(draws.cutout_size == 0.5, p)
    assert_frequency(draws.filters, 1 - (1 - p) ** len(BAND_POWER))


@pytest.mark.slow
@pytest.mark.parametrize("p", TABLE)
def test_images_are_spared_as_often_as_the_paper_says(p):
    for column, pipeline in enumerate(("blit", "bg", "bgc")):
        draws = draw(generators(COUNT, seed=1), p, pipeline)
        assert_frequency(~(draws.moves | draws.recolors), TABLE[p][3 + column])
        assert not draws.filters.any()
        assert not draws.noise.any()


def test_strengths_have_the_papers_distributions(draws_at):
    draws = draws_at(1.0)
    normal = {  # mean, standard deviation
        "scale": (draws.scale.log2(), 0.2),
        "anisotropy": (draws.anisotropy.log2(), 0.2),
        "translate_fraction": (draws.translate_fraction.flatten(), 0.125),
        "brightness": (draws.brightness, 0.2),
        "contrast": (draws.contrast.log2(), 0.5),
        "saturation": (draws.saturation.log2(), 1.0),
    }
    for name, (values, deviation) in normal.items():
        standard = values / deviation
        assert abs(standard.mean().item()) < 0.035, name
        assert standard.std().item() == pytest.approx(1, abs=0.03), name
        assert (standard.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=0.02), name
    uniform = {
        "shift": (draws.shift.flatten(), -0.125, 0.125),
        "rotate_pre": (draws.rotate_pre, -math.pi, math.pi),
        "rotate_post": (draws.rotate_post, -math.pi, math.pi),
        "hue": (draws.hue, -math.pi, math.pi),
        "cutout": (draws.cutout_center.flatten(), 0.0, 1.0),
    }
    for name, (values, low, high) in uniform.items():
        share = (values - low) / (high - low)
        assert 0 <= share.min() < 0.01, name
        assert 0.99 < share.max() <= 1, name
        assert share.std().item() == pytest.approx(1 / math.sqrt(12), abs=0.01), name
    assert torch.bincount(draws.rotate90).tolist() == pytest.approx([2500] * 4, abs=140)
    # A half-normal number has mean sqrt(2 / pi).
    assert (draws.noise / 0.1).mean().item() == pytest.approx(math.sqrt(2 / math.pi), abs=0.02)
    assert len(draws.noise_seed.unique()) == COUNT


def test_band_gains_keep_the_power_of_an_ordinary_image():
    """One band amplified: worked by hand for a factor 2 of the lowest, then joint gains against a loop."""
    draws = draw(generators(64), 0.3, "filter")
    power = (draws.band_gains.square() * torch.tensor(BAND_POWER, dtype=torch.float64)).sum(dim=1)
    alone = (draws.band_gains / draws.band_gains[:, [1]]).sub(1).abs().gt(1e-12).sum(dim=1) == 1  # band 0, 2 or 3
    assert alone.any()
    torch.testing.assert_close(power[alone], torch.ones_like(power[alone]))

    from discriminators.augmentation.draws import _joint_gains

    one = torch.ones(1, dtype=torch.float64)
    by_hand = torch.tensor([[2.0, 1, 1, 1]], dtype=torch.float64) / math.sqrt((10 * 4 + 3) / 13)
    torch.testing.assert_close(_joint_gains([2 * one, one, one, one]), by_hand)
    both = by_hand * torch.tensor([1, 3, 1, 1]) / math.sqrt((12 + 9) / 13)
    torch.testing.assert_close(_joint_gains([2 * one, 3 * one, one, one]), both)


def test_nothing_happens_at_p_0(draws_at):
    draws = draws_at(0.0)
    for acts in (draws.moves, draws.recolors, draws.filters, draws.noise != 0, draws.cutout_size != 0):
        assert not acts.any()


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_pipeline_acts_in_its_groups_alone(pipeline):
    draws = draw(generators(200), 1.0, pipeline)
    groups = PIPELINES[pipeline]
    blit = draws.shift.ne(0).any(dim=1)
    assert blit.any() == ("blit" in groups)
    assert draws.rotate_post.any() == ("geom" in groups)
    assert draws.recolors.any() == ("color" in groups)
    assert draws.filters.any() == ("filter" in groups)
    assert draws.noise.any() == ("noise" in groups)
    assert draws.cutout_size.any() == ("cutout" in groups)


def test_an_image_draws_from_its_own_generator_alone():
    together = draw(generators(6), 0.5, "bgcfnc")
    apart = [draw([generator], 0.5, "bgcfnc") for generator in generators(6)]
    for name in Draws.__dataclass_fields__:
        assert torch.equal(getattr(together, name), torch.cat([getattr(single, name) for single in apart])), name


def test_a_draw_takes_as_many_numbers_whatever_the_pipeline_and_p(draws_at):
    after = []
    for p, pipeline in ((0.0, "blit"), (0.3, "bgc"), (1.0, "bgcfnc")):
        (generator,) = generators(1)
        draw([generator], p, pipeline)
        after.append(torch.rand(1, dtype=torch.float64, generator=generator).item())
    assert len(set(after)) == 1
    (generator,) = generators(1)
    torch.rand(COLUMNS, dtype=torch.float64, generator=generator)
    assert torch.rand(1, dtype=torch.float64, generator=generator).item() == after[0]


def test_what_acts_at_a_low_p_acts_alike_at_a_higher_one(draws_at):
    low, high = draws_at(0.2), draws_at(0.6)
    for name, neutral in (("scale", 1.0), ("hue", 0.0), ("rotate_pre", 0.0), ("flip", 0), ("rotate90", 0)):
        acts = getattr(low, name) != neutral
        assert torch.equal(getattr(low, name)[acts], getattr(high, name)[acts]), name
    bgc = draw(generators(COUNT, seed=1), 0.6, "bgc")
    assert torch.equal(bgc.scale, high.scale)
    assert torch.equal(bgc.saturation, high.saturation)
