# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Scores of single answers, 0..1; edit distances come from rapidfuzz, which is imported where it is needed."""

import re


LIBRARIES_MISSING = "scores and intervals need statsmodels and rapidfuzz: pip install 'omnifusion_hf[eval]'."


def normalise(text: str) -> str:
    """The text that exact match compares: without letter case, runs of spaces and a full stop at the end."""
    return " ".join(text.split()).casefold().removesuffix(".").rstrip()


def exact_match(prediction: str, truths: list[str]) -> float:
    """1.0 if the prediction is one of the truths after [`normalise`], else 0.0."""
    return float(normalise(prediction) in map(normalise, truths))


def vqa_accuracy(prediction: str, truths: list[str]) -> float:
    """VQAv2's: the mean over each choice of all truths but one of min(1, as many of them as the prediction / 3); with
    a single truth, whether it is equal. Words are compared without articles and punctuation, numbers as digits; the
    official list of contractions is left out."""
    found, wanted = vqa_words(prediction), [vqa_words(truth) for truth in truths]
    if len(wanted) == 1:
        return float(found == wanted[0])
    others = (wanted[:index] + wanted[index + 1 :] for index in range(len(wanted)))
    return sum(min(1.0, rest.count(found) / 3) for rest in others) / len(wanted)


NUMBERS = "zero one two three four five six seven eight nine ten".split()


def vqa_words(text: str) -> list[str]:
    words = re.sub(r"(?!(?<=\d)[.,](?=\d))[^\w\s']", " ", text.casefold()).replace(",", "").split()
    return [str(NUMBERS.index(word)) if word in NUMBERS else word for word in words if word not in ("a", "an", "the")]


def anls(prediction: str, truths: list[str]) -> float:
    """Average normalised Levenshtein similarity of DocVQA: that of the nearest truth, 0 below a half."""
    similarities = [1 - normalised_edit_distance(normalise(prediction), normalise(truth)) for truth in truths]
    return max(similarity if similarity >= 0.5 else 0.0 for similarity in similarities)


def edit_distance(prediction: str, truths: list[str]) -> float:
    """[`normalised_edit_distance`] to the nearest truth; lower is better."""
    return min(normalised_edit_distance(prediction, truth) for truth in truths)


def normalised_edit_distance(prediction: str, truth: str) -> float:
    """Levenshtein distance over the longer length: 0 for equal strings, two empty ones included, 1 for nothing in
    common (paper, section 3.4)."""
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise ValueError(LIBRARIES_MISSING) from None
    return Levenshtein.normalized_distance(prediction, truth)


# Scores of an answer with its truths, by the name that recipes use.
METRICS = {"exact_match": exact_match, "vqa_accuracy": vqa_accuracy, "anls": anls, "edit_distance": edit_distance}
