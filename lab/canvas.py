"""The common properties of all drawings of the miniature world: size, colours, label map and label classes.

An image is 192 x 192 RGB. The renderer also returns a label map of 24 x 24 cells (8 x 8 pixels each) with the class
drawn in each cell. Only encoder pretraining reads the map; all later stages use images and text.
"""

from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image


SIDE = 192
GRID = 24
CELL = SIDE // GRID

COLOURS = {
    "red": (222, 35, 40),
    "orange": (248, 140, 20),
    "yellow": (245, 220, 40),
    "green": (40, 160, 60),
    "cyan": (60, 205, 220),
    "blue": (35, 70, 210),
    "purple": (140, 50, 175),
    "black": (25, 25, 28),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
GREEK = ("\\alpha", "\\beta", "\\gamma", "\\theta", "\\lambda", "\\pi")
VARIABLES = "abcknxyz"
SYMBOLS = (*VARIABLES, *GREEK, *DIGITS, "+", "-", "=", "\\frac", "\\sqrt", "\\sum")

CLASSES = (
    "background",
    *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    *(f"letter {c}" for c in LETTERS + DIGITS),
    *(f"handwritten {c}" for c in DIGITS),
    *(f"formula {c}" for c in SYMBOLS),
)
CLASS_ID = {name: i for i, name in enumerate(CLASSES)}

WORLD_SEED = {"train": 1, "validation": 2, "test": 3}


def sample_rng(split: str, kind: str, index: int) -> Random:
    """The only source of randomness; splits never share a seed. Raises `ValueError` for an unknown split."""
    if split not in WORLD_SEED:
        raise ValueError(f"split must be one of {sorted(WORLD_SEED)}, got {split!r}")
    return Random(f"{WORLD_SEED[split]}/{kind}/{index}")


@dataclass
class Drawing:
    """A rendered image with the facts on which its questions are based."""

    kind: str
    image: np.ndarray  # (192, 192, 3) uint8
    labels: np.ndarray  # (24, 24) uint8, indices into CLASSES
    facts: dict
    marks: list[tuple[str, float, float]]  # name, x and y of the centre in pixels, of each thing


def jitter(rng: Random, colour: tuple[int, int, int], amount: int) -> tuple[int, int, int]:
    return tuple(min(255, max(0, c + rng.randint(-amount, amount))) for c in colour)


def ink_and_paper(rng: Random) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Two colours of very different brightness; either may be the darker one."""
    dark = tuple(rng.randint(0, 90) for _ in range(3))
    light = tuple(rng.randint(175, 255) for _ in range(3))
    return (dark, light) if rng.random() < 0.7 else (light, dark)


def paper(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), colour)


def label_box(labels: np.ndarray, box: tuple[float, float, float, float], name: str) -> None:
    """Labels the cells whose centre lies in `box` (left, top, right, bottom in pixels), at least the middle one."""
    left, top, right, bottom = (v / CELL - 0.5 for v in box)
    rows = _inside(top, bottom)
    columns = _inside(left, right)
    labels[rows, columns] = CLASS_ID[name]


def _inside(low: float, high: float) -> slice:
    first, last = int(np.ceil(low)), int(np.floor(high))
    if last < first:
        first = last = round((low + high) / 2)
    return slice(max(first, 0), min(last, GRID - 1) + 1)
