# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""What one answer is worth, and how sure a share of right answers is: exact match, edit distance, intervals."""

from math import sqrt


Z_95 = 1.959963984540054  # two-sided 95% of the normal distribution


def normalise(text: str) -> str:
    """Text as exact match compares it: letter case, runs of spaces and a full stop at the end do not count."""
    return " ".join(text.split()).casefold().removesuffix(".").rstrip()


def exact_match(prediction: str, truths: list[str]) -> float:
    """1.0 where the prediction is one of the truths after [`normalise`], else 0.0."""
    return float(normalise(prediction) in map(normalise, truths))


def edit_distance(a: str, b: str) -> int:
    """Levenshtein: insertions, deletions and substitutions of characters."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


def normalised_edit_distance(prediction: str, truth: str) -> float:
    """0 for the same string, 1 for nothing in common; both empty counts as the same (paper, section 3.4)."""
    return edit_distance(prediction, truth) / max(len(prediction), len(truth), 1)


def wilson_interval(right: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Bounds of the share behind `right` of `n` (Wilson 1927), 95% by default; (0, 1) where nothing was counted.

    `right` may be a sum of scores in 0..1: such a mean varies no more than a yes-or-no share of the same size does.
    """
    if not 0 <= right <= n:
        raise ValueError(f"right must lie in 0..n, got {right} of {n}.")
    if n == 0:
        return 0.0, 1.0
    share, spread = right / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / n + spread / n / 4) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def difference_interval(right: float, n: int, other_right: float, other_n: int) -> tuple[float, float]:
    """Bounds of a share minus another, independent one, from their Wilson intervals (Newcombe 1998, method 10)."""
    share, other = right / max(n, 1), other_right / max(other_n, 1)
    low, high = wilson_interval(right, n)
    other_low, other_high = wilson_interval(other_right, other_n)
    difference = share - other
    below = sqrt((share - low) ** 2 + (other_high - other) ** 2)
    above = sqrt((high - share) ** 2 + (other - other_low) ** 2)
    return max(difference - below, -1.0), min(difference + above, 1.0)
