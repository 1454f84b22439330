"""Drawings to read: handwritten digits (scikit-learn's, split by index), printed words and numbers, short formulas.

matplotlib's mathtext lays out formulas; their LaTeX is the answer. A tenth of all formulas, chosen by checksum, is
held out from training.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from random import Random
from zlib import crc32

import matplotlib
import numpy as np
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.mathtext import MathTextParser
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

from .canvas import DIGITS, GREEK, GRID, LETTERS, SIDE, VARIABLES, Drawing, ink_and_paper, label_box, paper


FONT_FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmss10",
    "cmr10",
)
WORDS = (
    "CAT DOG SUN SKY SEA CAR BUS MAP KEY CUP HAT BOX PEN RED INK JAM OAK OWL FOX BEE ANT COW HEN PIG EGG ICE "
    "TEA PIE ZOO GYM UP GO NO ME WE IT IN ON AT BY MY OX TREE FISH BIRD LION WOLF BEAR FROG DUCK GOAT BOOK "
    "LAMP DOOR ROOF WALL ROAD SHIP BOAT MOON STAR SNOW RAIN WIND FIRE GOLD IRON SALT MILK CAKE RICE CORN KIWI "
    "PLUM PEAR JAZZ QUIZ EXIT STOP OPEN HELP LOVE HOME "
).split()
FORMULA_MARGIN = 12


@lru_cache(maxsize=2048)
def font_of(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT_FOLDER / f"{name}.ttf"), size)


# --- handwritten digits ----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return data.images, data.target


def digit_indices(split: str) -> list[int]:
    """Which of the 1797 images a split may use: of every 14, 4 for test, 1 for validation, 9 for training."""
    part = {0: "test", 3: "validation", 5: "test", 7: "test", 10: "test"}
    return [i for i in range(1797) if part.get(i % 14, "train") == split]


def render_digit(rng: Random, split: str) -> Drawing:
    """An 8 x 8 digit, enlarged, moved, rotated, scaled, with a thinner or thicker stroke."""
    images, targets = _digits()
    index = rng.choice(digit_indices(split))
    scale = rng.uniform(13, 22)  # pixels a source pixel
    angle = rng.gauss(0, 0.12)
    cx, cy = (SIDE / 2 + rng.uniform(-1, 1) * (SIDE / 2 - 4 * scale) for _ in range(2))
    c, s = np.cos(angle) / scale, np.sin(angle) / scale
    shear = rng.gauss(0, 0.1)
    a, b = c + shear * s, s * 1.0 + shear * c
    source = Image.fromarray(np.pad(images[index], 4).astype(np.float32), "F")
    move = (a, b, 8 - a * cx - b * cy, -s, c, 8 + s * cx - c * cy)
    strokes = np.asarray(source.transform((SIDE, SIDE), Image.Transform.AFFINE, move, Image.Resampling.BICUBIC))
    level, sharpness = rng.uniform(5, 9), rng.uniform(4, 12)
    cover = np.clip((strokes - level) / sharpness + 0.5, 0, 1)[..., None]
    ink, ground = (np.array(v, np.float32) for v in ink_and_paper(rng))
    image = (ground + (ink - ground) * cover).astype(np.uint8)
    labels = np.zeros((GRID, GRID), np.uint8)
    label_box(
        labels,
        (cx - 2.7 * scale, cy - 3.8 * scale, cx + 2.7 * scale, cy + 3.8 * scale),
        f"handwritten {targets[index]}",
    )
    digit = str(targets[index])
    return Drawing("digit", image, labels, {"digit": digit, "index": index}, [(digit, cx, cy)])


# --- printed words and numbers ---------------------------------------------------------------------------


def sample_text(rng: Random, length: int) -> str:
    """`length` digits, random capitals, or a real word of that length (if there is one)."""
    draw = rng.random()
    real = [w for w in WORDS if len(w) == length]
    if draw < 0.3:
        return "".join(rng.choices(DIGITS, k=length))
    if draw < 0.5 and real:
        return rng.choice(real)
    return "".join(rng.choices(LETTERS, k=length))


def render_text(rng: Random, length: int) -> Drawing:
    text = sample_text(rng, length)
    name = rng.choice(FONTS)
    widest = font_of(name, 100).getlength(text)
    largest = min(120, int(100 * 176 / widest))
    font = font_of(name, rng.randint(min(44, largest), largest))
    left, top, right, bottom = font.getbbox(text, anchor="ls")
    x = rng.uniform(4 - left, SIDE - 4 - right)
    y = rng.uniform(4 - top, SIDE - 4 - bottom)
    ink, ground = ink_and_paper(rng)
    image = paper(ground)
    ImageDraw.Draw(image).text((x, y), text, ink, font, anchor="ls")
    labels, marks = np.zeros((GRID, GRID), np.uint8), []
    for i, character in enumerate(text):
        start, end = font.getlength(text[:i]), font.getlength(text[: i + 1])
        label_box(labels, (x + start, y + top, x + end, y + bottom), f"letter {character}")
        marks.append((character, x + (start + end) / 2, y + (top + bottom) / 2))
    kind = "number" if text.isdigit() else "word"
    return Drawing("text", np.asarray(image), labels, {"text": text, "what": kind}, marks)


# --- formulas --------------------------------------------------------------------------------------------


def _atom(rng: Random) -> str:
    draw = rng.random()
    if draw < 0.45:
        return rng.choice(VARIABLES)
    if draw < 0.7:
        return rng.choice(GREEK)
    return str(rng.randint(0, 9) if rng.random() < 0.8 else rng.randint(10, 99))


def _term(rng: Random) -> str:
    form = rng.choices(("atom", "power", "index", "frac", "sqrt", "sum"), (25, 20, 15, 20, 12, 8))[0]
    if form == "power":
        return f"{rng.choice((*VARIABLES, *GREEK))}^{{{_atom(rng)}}}"
    if form == "index":
        return f"{rng.choice((*VARIABLES, *GREEK))}_{{{_atom(rng)}}}"
    if form == "frac":
        return f"\\frac{{{_atom(rng)}}}{{{_atom(rng)}}}"
    if form == "sqrt":
        return f"\\sqrt{{{_atom(rng)}}}"
    if form == "sum":
        return f"\\sum_{{k=1}}^{{n}}{_letter_first(_atom(rng))}"
    return _atom(rng)


def _letter_first(atom: str) -> str:
    return atom if not atom.isdigit() else f"k^{{{atom}}}"


def sample_formula(rng: Random) -> str:
    """One to three terms joined by +, - or a single =. Powers, indices, fractions, roots, sums, Greek letters."""
    terms = [_term(rng) for _ in range(rng.choices((1, 2, 3), (25, 50, 25))[0])]
    equals = rng.randrange(1, 2 * len(terms))  # beyond the last gap: no equals sign
    return "".join(t if i == 0 else ("=" if i == equals else rng.choice("+-")) + t for i, t in enumerate(terms))


def is_held_out(latex: str) -> bool:
    return crc32(latex.encode()) % 10 == 0


@dataclass(frozen=True)
class Layout:
    """A formula at 100 pixels: glyphs (font file, size, character, x, baseline y), rules as boxes; y downwards."""

    width: float
    height: float
    glyphs: tuple[tuple[str, float, str, float, float], ...]
    rules: tuple[tuple[float, float, float, float], ...]


@cache
def mathtext() -> MathTextParser:
    """It finds fonts by an index that matplotlib saved for the user: with other fonts on every machine, and without
    matplotlib's own if the installation that wrote it is gone. Here the index has matplotlib's own only."""
    fontManager.ttflist.clear()
    for file in sorted(FONT_FOLDER.glob("*.ttf")):
        fontManager.addfont(file)
    return MathTextParser("path")


@lru_cache(maxsize=200_000)
def lay_out(latex: str) -> Layout:
    """mathtext's layout of `latex`, which is scaled when it is drawn."""
    parsed = mathtext().parse(f"${latex}$", dpi=72, prop=FontProperties(size=100))
    above = float(parsed.height - parsed.depth)  # mathtext measures y upwards from the baseline
    glyphs = tuple(
        (font.fname, float(size), chr(code), float(x), above - float(y)) for font, size, code, _, x, y in parsed.glyphs
    )
    rules = tuple((float(x), above - float(y + h), float(x + w), above - float(y)) for x, y, w, h in parsed.rects)
    return Layout(float(parsed.width), float(parsed.height), glyphs, rules)


@lru_cache(maxsize=4096)
def _file_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


_COMMANDS = dict(zip("αβγθλπ", GREEK, strict=True)) | {"√": "\\sqrt", "∑": "\\sum", "−": "-"}


def render_formula(rng: Random, latex: str) -> Drawing:
    layout = lay_out(latex)
    room = SIDE - 2 * FORMULA_MARGIN
    largest = min(room / layout.width, room / layout.height, 0.75)
    scale = largest * rng.uniform(0.8, 1)
    left = rng.uniform(FORMULA_MARGIN, SIDE - FORMULA_MARGIN - layout.width * scale)
    top = rng.uniform(FORMULA_MARGIN, SIDE - FORMULA_MARGIN - layout.height * scale)
    ink, ground = ink_and_paper(rng)
    image = paper(ground)
    labels, marks = np.zeros((GRID, GRID), np.uint8), []
    draw = ImageDraw.Draw(image)
    for x0, y0, x1, y1 in layout.rules:
        box = (left + x0 * scale, top + y0 * scale, left + x1 * scale, top + y1 * scale)
        draw.rectangle((box[0], box[1], box[2], max(box[3], box[1] + 1.5)), fill=ink)
        label_box(labels, box, "formula \\frac")
        marks.append(("\\frac", (box[0] + box[2]) / 2, box[1]))
    for path, size, character, x, y in layout.glyphs:
        font = _file_font(path, max(round(size * scale), 6))
        at = (left + x * scale, top + y * scale)
        draw.text(at, character, ink, font, anchor="ls")
        name = _COMMANDS.get(character, character)
        box = draw.textbbox(at, character, font, anchor="ls")
        label_box(labels, box, f"formula {name}")
        marks.append((name, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
    return Drawing("formula", np.asarray(image), labels, {"latex": latex}, marks)


def formula_for(rng: Random, split: str) -> str:
    """A formula of the split: a held-out one for test and validation, any other for training."""
    while True:
        latex = sample_formula(rng)
        if is_held_out(latex) == (split != "train"):
            return latex
