"""Drawing number `index` of a kind and a split: the whole world is a function of these three arguments."""

from random import Random

from .canvas import Drawing, sample_rng
from .glyphs import formula_for, render_digit, render_formula, render_text
from .scenes import render_scene


KINDS = ("scene", "digit", "text", "formula")
TEXT_LENGTHS = (1, 2, 3, 4)
TEXT_WEIGHTS = (20, 25, 30, 25)
FORMULA_POOL = 30_000  # distinct draws for training; the layout of a formula takes ten times as long as its drawing


def render(split: str, kind: str, index: int, length: int | None = None) -> Drawing:
    """The drawing; `length` (1-4) fixes the characters of a text. Raises `ValueError` for an unknown kind or split."""
    rng = sample_rng(split, kind, index)
    if kind == "scene":
        return render_scene(rng)
    if kind == "digit":
        return render_digit(rng, split)
    if kind == "text":
        return render_text(rng, length or rng.choices(TEXT_LENGTHS, TEXT_WEIGHTS)[0])
    if kind == "formula":
        return render_formula(rng, _formula(rng, split))
    raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")


def _formula(rng: Random, split: str) -> str:
    pooled = sample_rng(split, "latex", rng.randrange(FORMULA_POOL))
    return formula_for(pooled if split == "train" else rng, split)
