# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Confidence intervals of accuracies, by statsmodels, and the functions that tasks/*tex* name."""

import re

from ..scores import LIBRARIES_MISSING, normalised_edit_distance


def wilson_interval(right: float, n: int) -> tuple[float, float]:
    """95% interval of a share, given `right` of `n` (Wilson 1927); (0, 1) for n = 0.

    `right` may be a sum of scores in 0..1: their mean varies at most as much as a yes-or-no share of the same size.
    """
    if not 0 <= right <= n:
        raise ValueError(f"right must lie in 0..n, got {right} of {n}.")
    if n == 0:
        return 0.0, 1.0
    low, high = _proportion().proportion_confint(right, n, method="wilson")
    return max(float(low), 0.0), min(float(high), 1.0)  # rounding errors


def difference_interval(right: float, n: int, other_right: float, other_n: int) -> tuple[float, float]:
    """95% interval of one share minus another, independent one (Newcombe 1998, method 10); both n above 0."""
    counts = (right, n, other_right, other_n)
    low, high = _proportion().confint_proportions_2indep(*counts, method="newcomb", compare="diff")
    return max(float(low), -1.0), min(float(high), 1.0)


def _proportion():
    try:
        from statsmodels.stats import proportion
    except ImportError:
        raise ValueError(LIBRARIES_MISSING) from None
    return proportion


def formula_images(doc: dict) -> list:
    return [doc["image"]]


def formula_scores(doc: dict, answers: list[str]) -> dict[str, float]:
    """`edit_distance`, 0..1, lower is better, and `exact_match` (paper, section 3.4)."""
    prediction, truth = plain_latex(answers[0]), plain_latex(doc["formula"])
    return {"edit_distance": normalised_edit_distance(prediction, truth), "exact_match": float(prediction == truth)}


def plain_latex(text: str) -> str:
    """LaTeX without what is not visible: white space (datasets put it between all tokens) and math delimiters."""
    text = re.sub(r"\s+", "", text)
    for left, right in (("$$", "$$"), ("$", "$"), (r"\[", r"\]"), (r"\(", r"\)")):
        if text.startswith(left) and text.endswith(right) and len(text) >= len(left) + len(right):
            return text[len(left) : len(text) - len(right)]
    return text
