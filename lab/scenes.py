"""Scenes: one to five coloured shapes that do not overlap, on a pale ground."""

from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from .canvas import CELL, CLASS_ID, COLOURS, GRID, SHAPES, SIDE, Drawing, jitter, paper


MIN_RADIUS, MAX_RADIUS = 17, 34
_SUPERSAMPLE = 4


@dataclass(frozen=True)
class Thing:
    """A shape with its centre and radius in pixels."""

    shape: str
    colour: str
    x: int
    y: int
    radius: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def _polygon(shape: str) -> list[tuple[float, float]]:
    """Corners in units of the radius, y downwards."""
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "triangle":
        return [(0, -1), (0.95, 0.8), (-0.95, 0.8)]
    if shape == "diamond":
        return [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)]
    if shape == "star":
        return [(r * sin(k * pi / 5), -r * cos(k * pi / 5)) for k, r in enumerate([1.05, 0.42] * 5)]
    a = 0.33
    return [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]


@lru_cache(maxsize=4096)
def mask_of(shape: str, radius: int, tilt: int) -> Image.Image:
    """The anti-aliased coverage of a shape, (2r + 5) pixels wide."""
    size = 2 * radius + 5
    big = Image.new("L", (size * _SUPERSAMPLE,) * 2)
    centre, scale = size * _SUPERSAMPLE / 2, radius * _SUPERSAMPLE
    draw = ImageDraw.Draw(big)
    if shape == "circle":
        draw.ellipse([centre - scale * 0.95] * 2 + [centre + scale * 0.95] * 2, fill=255)
    else:
        c, s = cos(tilt * pi / 180), sin(tilt * pi / 180)
        corners = [(centre + scale * (x * c - y * s), centre + scale * (x * s + y * c)) for x, y in _polygon(shape)]
        draw.polygon(corners, fill=255)
    return big.reduce(_SUPERSAMPLE)


def sample_things(
    rng: Random, most: int = 5, side: int = SIDE, smallest: int = MIN_RADIUS, largest: int = MAX_RADIUS
) -> list[Thing]:
    """One to `most` things. Half of the scenes have few shapes or colours, so that counts above 1 occur."""
    wanted = rng.randint(1, most)
    few = rng.random() < 0.5
    shapes = rng.sample(SHAPES, rng.randint(1, 2) if few else len(SHAPES))
    colours = rng.sample(list(COLOURS), rng.randint(1, 3) if rng.random() < 0.3 else len(COLOURS))
    things: list[Thing] = []
    largest = largest if wanted <= 3 else min(largest, 29)
    while len(things) < wanted:
        radius = rng.randint(smallest, largest)
        x, y = (rng.randint(radius + 2, side - radius - 3) for _ in range(2))
        if all((x - t.x) ** 2 + (y - t.y) ** 2 > (radius + t.radius + 4) ** 2 for t in things):
            things.append(Thing(rng.choice(shapes), rng.choice(colours), x, y, radius))
    return sorted(things, key=lambda t: t.x)


def draw_scene(rng: Random, things: list[Thing]) -> Drawing:
    pale = rng.randint(205, 255)
    image = paper(jitter(rng, (pale, pale, pale), 12))
    labels = np.zeros((GRID, GRID), np.uint8)
    for thing in things:
        mask = mask_of(thing.shape, thing.radius, rng.randrange(-10, 11, 2))
        corner = (thing.x - mask.width // 2, thing.y - mask.height // 2)
        image.paste(jitter(rng, COLOURS[thing.colour], 14), corner, mask)
        _label(labels, thing, mask, corner)
    marks = [(thing.name, thing.x, thing.y) for thing in things]
    return Drawing("scene", np.asarray(image), labels, {"things": things}, marks)


def _label(labels: np.ndarray, thing: Thing, mask: Image.Image, corner: tuple[int, int]) -> None:
    """Labels the cells whose centre the shape covers."""
    coverage = np.asarray(mask)
    for row in range(max(corner[1] // CELL, 0), min((corner[1] + mask.height) // CELL + 1, GRID)):
        for column in range(max(corner[0] // CELL, 0), min((corner[0] + mask.width) // CELL + 1, GRID)):
            y, x = row * CELL + CELL // 2 - corner[1], column * CELL + CELL // 2 - corner[0]
            if 0 <= y < mask.height and 0 <= x < mask.width and coverage[y, x] > 127:
                labels[row, column] = CLASS_ID[thing.name]


def render_scene(rng: Random) -> Drawing:
    return draw_scene(rng, sample_things(rng))
