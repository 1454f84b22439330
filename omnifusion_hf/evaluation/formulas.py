# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""How lmms-eval asks and scores images of formulas: the functions that tasks/*tex* name (paper, section 3.4)."""

import re

from .metrics import normalised_edit_distance


def images_of(doc: dict) -> list:
    return [doc["image"]]


def scores_of(doc: dict, answers: list[str]) -> dict[str, float]:
    """`edit_distance`, 0..1, lower is better, and `exact_match`."""
    said, truth = plain_latex(answers[0]), plain_latex(doc["formula"])
    return {"edit_distance": normalised_edit_distance(said, truth), "exact_match": float(said == truth)}


def plain_latex(text: str) -> str:
    """LaTeX without what does not show: white space (data sets set it between all tokens) and the math delimiters."""
    text = re.sub(r"\s+", "", text)
    for left, right in (("$$", "$$"), ("$", "$"), (r"\[", r"\]"), (r"\(", r"\)")):
        if text.startswith(left) and text.endswith(right) and len(text) >= len(left) + len(right):
            return text[len(left) : len(text) - len(right)]
    return text
