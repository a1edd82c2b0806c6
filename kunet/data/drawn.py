"""Drawn pictures with their exact masks: something to segment without a download.

Class 0 is background, 1 round cells, 2 rods. Both are textured and coloured alike, so only shape tells them apart;
their colour differs from the background's by less than light and texture make of either, so no threshold finds them.
"""

import numpy as np

SEEDS = {"train": 0, "heldout": 1}
FINE = 3
"""Points a pixel's side: the share of them inside a shape is the pixel's coverage."""


def draw(seed: int, index: int, size: int = 128) -> np.ndarray:
    """A picture and its mask, (size, size, 4) uint8: RGB, then the class; a function of the arguments alone.

    Of the shapes that cover more than half of a pixel, the one drawn last gives it its class. Shapes grow with
    ``size``, textures do not.
    """
    random = np.random.default_rng((seed, index))
    colour = random.uniform(0.35, 0.65, 3)
    image = colour + 0.09 * _waves(random, size, 2, 9)[..., None]
    inside = colour - random.uniform(0.06, 0.14, 3)
    textures = [_waves(random, size, 14, 22) for _ in range(2)]
    mask = np.zeros((size, size), np.uint8)
    kinds = random.permutation([1] * random.integers(3, 7) + [2] * random.integers(3, 7))
    for kind in kinds:
        rows, columns, coverage = (_cell if kind == 1 else _rod)(random, size)
        a = coverage[..., None]
        mix = random.uniform(0, 2 * np.pi)  # each shape has its own texture, so an edge shows where two overlap
        one, other = (texture[rows, columns, None] for texture in textures)
        own = inside + 0.10 * (np.cos(mix) * one + np.sin(mix) * other)
        image[rows, columns] = (1 - a) * image[rows, columns] + a * own
        mask[rows, columns][coverage > 0.5] = kind
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    turn = random.uniform(0, 2 * np.pi)
    image += (0.15 * (np.cos(turn) * x + np.sin(turn) * y))[..., None]
    image += random.normal(0, 0.015, image.shape)
    return np.concatenate([(image.clip(0, 1) * 255).round().astype(np.uint8), mask[..., None]], 2)


def _waves(random: np.random.Generator, size: int, low: float, high: float, count: int = 24) -> np.ndarray:
    """A random texture (size, size) of variance 1: plane waves of ``low`` to ``high`` periods a 128 pixels."""
    turn, phase = random.uniform(0, 2 * np.pi, (2, count))
    rate = 2 * np.pi * random.uniform(low, high, count) / 128
    place = np.arange(size)
    # cos(a + b) as products, so that one matrix product sums all the waves
    a, b = np.outer(place, rate * np.sin(turn)) + phase, np.outer(place, rate * np.cos(turn))
    return np.sqrt(2 / count) * (np.cos(a) @ np.cos(b).T - np.sin(a) @ np.sin(b).T)


def _cell(random: np.random.Generator, size: int) -> tuple[slice, slice, np.ndarray]:
    """A round shape whose radius swings with the direction."""
    radius, stretch = random.uniform(0.07, 0.12) * size, random.uniform(0.85, 1.18)
    order, swing, phase = np.arange(2, 5), random.normal(0, 0.04, 3), random.uniform(0, 2 * np.pi, 3)

    def inside(x, y):
        x = x * stretch
        turn = np.arctan2(y, x)
        wobble = sum(s * np.cos(k * turn + p) for k, s, p in zip(order, swing, phase))
        return np.hypot(x, y) < radius * (1 + wobble)

    return _cover(random, size, 2 * radius, inside)


def _rod(random: np.random.Generator, size: int) -> tuple[slice, slice, np.ndarray]:
    """All points within a distance of a straight piece of line."""
    half, radius = random.uniform(0.10, 0.18) * size, random.uniform(0.03, 0.045) * size
    turn = random.uniform(0, np.pi)

    def inside(x, y):
        along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        return np.hypot(np.maximum(np.abs(along) - half, 0), across) < radius

    return _cover(random, size, half + radius, inside)


def _cover(random: np.random.Generator, size: int, reach: float, inside) -> tuple[slice, slice, np.ndarray]:
    """(rows, columns, the coverage of their pixels) of a shape around a random centre."""
    centre = random.uniform(0, size, 2)
    first, last = (np.clip(edge, 0, size).astype(int) for edge in (np.floor(centre - reach), np.ceil(centre + reach)))
    y, x = ((np.arange(a * FINE, b * FINE) + 0.5) / FINE - c for a, b, c in zip(first, last, centre))
    hits = inside(x[None, :], y[:, None])
    coverage = hits.reshape(len(y) // FINE, FINE, len(x) // FINE, FINE).mean((1, 3))
    return slice(first[0], last[0]), slice(first[1], last[1]), coverage
