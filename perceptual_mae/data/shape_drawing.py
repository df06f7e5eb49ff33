"""The geometry and colours of procedural shapes, for many scenes at once.

Lengths are fractions of the image side, angles radians, colours RGB in [0, 1]. N scenes, P pixels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("circle", "rectangle", "triangle", "ring", "cross", "star", "crescent", "hexagon")
AREAS = (math.pi, 2.8, 1.299, 2.356, 2.362, 1.469, 1.609, 2.598)
"""Of each kind when its outer radius (or longer half side) is 1."""
RECTANGLE_SIDES = 0.7
RING_HOLE = 0.5
CROSS_ARM = 0.36
STAR_VALLEY = 0.5
CRESCENT_SHIFT, CRESCENT_BITE = 0.55, 0.8

PLAIN_SHARE, GRADED_SHARE = 0.3, 0.4
"""Of the surfaces; the rest is striped."""
STRIPE_PERIODS = (0.16, 0.34)
MAX_SHAPES = 3
LARGEST_RADII = (0.25, 0.35)
"""Of the first shape; as all radii, that of a circle of the same area, before others cover it."""
OTHER_RADII = (0.11, 0.17)
REACHES = (0.18, 0.36, 0.36)
"""Largest distance of each shape's centre from the middle of the image, in x and in y."""

BACKGROUND_DRAWS = 2 + 9 * 3
SHAPE_DRAWS = 15
NUM_DRAWS = BACKGROUND_DRAWS + 1 + MAX_SHAPES * SHAPE_DRAWS
"""Uniform numbers a scene takes."""


@dataclass(frozen=True)
class Scenes:
    """The contents of N scenes; the shapes (N, 3) of a scene in the order they are drawn, the largest first."""

    background: Tensor  # (N, 3, 3, 3): rows, columns, RGB
    counts: Tensor  # (N,)
    kinds: Tensor  # (N, 3)
    fills: Tensor  # (N, 3): 0 plain, 1 graded, 2 striped
    radii: Tensor  # (N, 3), outer
    centres: Tensor  # (N, 3, 2): x, y
    angles: Tensor  # (N, 3)
    fill_angles: Tensor  # (N, 3)
    periods: Tensor  # (N, 3)
    phases: Tensor  # (N, 3)
    colours: Tensor  # (N, 3, 2, 3): the two colours of a surface


def read_scenes(draws: Tensor) -> Scenes:
    """Return the scenes of uniform numbers (N, NUM_DRAWS) in [0, 1).

    In float64, so that no byte depends on how many scenes are drawn at once, nor on the processor's sine.
    """
    draws = draws.double()
    hue, spread = draws[:, :1], 0.04 + 0.16 * draws[:, 1:2]
    grid = draws[:, 2:BACKGROUND_DRAWS].reshape(-1, 9, 3)
    background = _rgb(hue + spread * (2 * grid[..., 0] - 1), 0.15 + 0.6 * grid[..., 1], 0.2 + 0.75 * grid[..., 2])
    u = draws[:, BACKGROUND_DRAWS + 1 :].reshape(-1, MAX_SHAPES, SHAPE_DRAWS)
    kinds = (u[..., 0] * len(KINDS)).long()
    radii = torch.cat([_between(LARGEST_RADII, u[:, :1, 1]), _between(OTHER_RADII, u[:, 1:, 1])], dim=1)
    fills = (u[..., 5] >= PLAIN_SHARE).long() + (u[..., 5] >= PLAIN_SHARE + GRADED_SHARE)
    return Scenes(
        background=background.view(-1, 3, 3, 3),
        counts=1 + (draws[:, BACKGROUND_DRAWS] * MAX_SHAPES).long(),
        kinds=kinds,
        fills=fills,
        radii=radii * (math.pi / torch.tensor(AREAS, dtype=torch.float64)[kinds]).sqrt(),
        centres=0.5 + torch.tensor(REACHES, dtype=torch.float64)[:, None] * (2 * u[..., 2:4] - 1),
        angles=2 * math.pi * u[..., 4],
        fill_angles=2 * math.pi * u[..., 12],
        periods=_between(STRIPE_PERIODS, u[..., 13]),
        phases=2 * math.pi * u[..., 14],
        colours=_surface_colours(hue, fills == 2, u[..., 6:12]),
    )


def draw(scenes: Scenes, size: int) -> Tensor:
    """Return the uint8 images (N, 3, size, size), edges antialiased."""
    middles = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    basis = torch.stack([(1 - middles) ** 2, 2 * middles * (1 - middles), middles**2], dim=1)  # quadratic Bernstein
    canvas = torch.einsum("yi,xj,nijc->ncyx", basis, basis, scenes.background).flatten(2)
    for shape in range(MAX_SHAPES):
        rows = (scenes.counts > shape).nonzero().flatten()
        below = canvas[rows]
        canvas[rows] = below + coverage(scenes, shape, rows, size)[:, None] * (
            _surface(scenes, shape, rows, size) - below
        )
    return canvas.clamp(0, 1).mul(255).round().to(torch.uint8).view(-1, 3, size, size)


def coverage(scenes: Scenes, shape: int, rows: Tensor, size: int) -> Tensor:
    """Return how much of each pixel, in [0, 1], the shape-th shape of the scenes `rows` covers: (len(rows), P)."""
    x, y = _offsets(scenes, shape, rows, size)
    radius, angle = scenes.radii[rows, shape, None], scenes.angles[rows, shape, None]
    along, across = (angle.cos() * x + angle.sin() * y) / radius, (angle.cos() * y - angle.sin() * x) / radius
    distance = torch.empty_like(along)
    kinds = scenes.kinds[rows, shape]
    for kind, name in enumerate(KINDS):
        of_kind = kinds == kind
        distance[of_kind] = _distance(name, along[of_kind], across[of_kind])
    return (0.5 - distance * radius * size).clamp(0, 1)


def _distance(kind: str, x: Tensor, y: Tensor) -> Tensor:
    """Return the signed distance of points x, y (...) to a shape of outer radius 1, negative inside.

    It is too small beyond corners only.
    """
    if kind == "circle":
        return torch.hypot(x, y) - 1
    if kind == "rectangle":
        return torch.maximum(x.abs() - 1, y.abs() - RECTANGLE_SIDES)
    if kind == "ring":
        middle, half = (1 + RING_HOLE) / 2, (1 - RING_HOLE) / 2
        return (torch.hypot(x, y) - middle).abs() - half
    if kind == "cross":
        x, y = x.abs(), y.abs()
        return torch.minimum(torch.maximum(x - 1, y - CROSS_ARM), torch.maximum(y - 1, x - CROSS_ARM))
    if kind == "crescent":
        return torch.maximum(torch.hypot(x, y) - 1, CRESCENT_BITE - torch.hypot(x - CRESCENT_SHIFT, y))
    if kind == "star":
        return _pointed(x, y, 5, STAR_VALLEY)
    corners = {"triangle": 3, "hexagon": 6}[kind]
    return _pointed(x, y, corners, math.cos(math.pi / corners))


def _pointed(x: Tensor, y: Tensor, points: int, valley: float) -> Tensor:
    """Return the signed distance of x, y (...) to a star with tips at radius 1 and valleys at `valley`.

    At cos(pi / points) the star is a polygon.
    """
    half = math.pi / points
    angle = ((torch.atan2(y, x) + half) % (2 * half) - half).abs()  # folded: a tip is at 0, a valley at `half`
    normal = (valley * math.sin(half), 1 - valley * math.cos(half))
    radius = torch.hypot(x, y)
    return ((radius * angle.cos() - 1) * normal[0] + radius * angle.sin() * normal[1]) / math.hypot(*normal)


def _surface(scenes: Scenes, shape: int, rows: Tensor, size: int) -> Tensor:
    """Return the colour (len(rows), 3, P) of the shape's surface at every pixel."""
    x, y = _offsets(scenes, shape, rows, size)
    angle, period = scenes.fill_angles[rows, shape, None], scenes.periods[rows, shape, None]
    along = angle.cos() * x + angle.sin() * y
    graded = 0.5 + along / (2 * scenes.radii[rows, shape, None])
    wave = torch.sin(2 * math.pi * along / period + scenes.phases[rows, shape, None])
    striped = 0.5 + wave * period * size / (2 * math.pi)  # edges one pixel wide
    fills = scenes.fills[rows, shape, None]
    share = torch.where(fills == 1, graded, striped).clamp(0, 1).mul(fills > 0)
    first, second = scenes.colours[rows, shape, 0, :, None], scenes.colours[rows, shape, 1, :, None]
    return torch.lerp(first, second, share[:, None])


def _surface_colours(hue: Tensor, striped: Tensor, u: Tensor) -> Tensor:
    """Return two colours (N, 3, 2, 3) for each surface, away from the background's hue; in stripes they contrast."""
    hues = hue + 0.5 + 0.33 * (2 * u[..., 0] - 1)
    other_hues = hues + torch.where(striped, 0.35, 0.14) * (2 * u[..., 1] - 1)
    values = _between((0.5, 1), u[..., 2])
    contrasting = torch.where(values > 0.7, values - 0.4, values + 0.3)
    other_values = torch.where(striped, contrasting, _between((0.45, 1), u[..., 3]))
    first = _rgb(hues, _between((0.45, 1), u[..., 4]), values)
    return torch.stack([first, _rgb(other_hues, _between((0.3, 1), u[..., 5]), other_values)], dim=2)


def _offsets(scenes: Scenes, shape: int, rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return x and y (len(rows), P) of the pixels' middles from the shape's centre."""
    middles = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    centres = scenes.centres[rows, shape]
    return middles.repeat(size) - centres[:, :1], middles.repeat_interleave(size) - centres[:, 1:]


def _between(bounds: tuple[float, float], u: Tensor) -> Tensor:
    """Map u (...) from [0, 1] to the bounds."""
    return bounds[0] + (bounds[1] - bounds[0]) * u


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return the RGB colours (..., 3) of hue (in turns, any number), saturation and value."""
    sector = (torch.tensor([5.0, 3.0, 1.0], dtype=torch.float64) + 6 * hue[..., None]) % 6
    shade = torch.minimum(sector, 4 - sector).clamp(0, 1)
    return value[..., None] * (1 - saturation[..., None] * shade)
