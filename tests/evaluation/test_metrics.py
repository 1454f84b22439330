"""evaluation/metrics.py: against worked examples and published figures."""

import pytest

from omnifusion_hf.evaluation import metrics
from omnifusion_hf.evaluation.metrics import formula_scores, wilson_interval
from omnifusion_hf.scores import anls, exact_match, vqa_accuracy


SHARES = [("", "", 0), ("abc", "abc", 0), ("abc", "", 1), ("x^{2}", "x^{3}", 0.2), ("kitten", "sitting", 3 / 7)]


@pytest.mark.parametrize("a, b, share", SHARES)
def test_normalised_edit_distance(a, b, share):
    assert metrics.normalised_edit_distance(a, b) == metrics.normalised_edit_distance(b, a) == pytest.approx(share)


def test_exact_match_ignores_only_case_spaces_and_the_last_full_stop():
    for same in ("Two  birds", " two birds.\n", "TWO BIRDS"):
        assert exact_match(same, ["one bird", "two birds"]) == 1
    for other in ("two bird", "twobirds", "two birds?", ""):
        assert exact_match(other, ["one bird", "two birds"]) == 0


VQA = [  # ten people's answers, as the benchmark has them; one person's
    ("A cat.", ["cat"] * 10, 1), ("cat", ["cat"] * 2 + ["dog"] * 8, 0.6), ("cat", ["cat"] + ["dog"] * 9, 0.3),
    ("the two dogs", ["2 dogs"] * 4 + ["3"] * 6, 1), ("1,000", ["1000"], 1), ("cat", ["dog"], 0),
]  # fmt: skip


@pytest.mark.parametrize("answer, truths, score", VQA)
def test_vqa_accuracy_is_the_mean_over_all_sets_of_nine_people(answer, truths, score):
    assert vqa_accuracy(answer, truths) == pytest.approx(score)


ANLS = [("Kitten", ["kitten"], 1), ("kitten", ["mitten", "x"], 5 / 6), ("kitten", ["dog"], 0), ("ab", ["ac"], 0.5)]


@pytest.mark.parametrize("answer, truths, score", ANLS)
def test_anls_is_the_similarity_to_the_nearest_truth_and_zero_below_a_half(answer, truths, score):
    assert anls(answer, truths) == pytest.approx(score)


PUBLISHED = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611), (1, 29): (0.0061, 0.1718)}


@pytest.mark.parametrize("counts, bounds", [*PUBLISHED.items(), ((0, 0), (0, 1))])
def test_wilson_interval_of_published_figures(counts, bounds):
    """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3. The last is ours: no measurement."""
    assert wilson_interval(*counts) == pytest.approx(bounds, abs=5e-5)


def test_the_interval_of_partial_scores_lies_between_those_of_whole_ones():
    (low, _), (middle, _), (high, _) = (wilson_interval(right, 20) for right in (3, 3.5, 4))
    assert low < middle < high
    with pytest.raises(ValueError, match="3 of 2"):
        wilson_interval(3, 2)


def test_difference_interval_of_published_figures():
    """Newcombe 1998, Statistics in Medicine 17, 873-890, table II, method 10."""
    published = {(56, 70, 48, 80): (0.0524, 0.3339), (9, 10, 3, 10): (0.1705, 0.8090), (10, 10, 0, 20): (0.6791, 1.0)}
    for counts, bounds in published.items():
        assert metrics.difference_interval(*counts) == pytest.approx(bounds, abs=5e-5)


@pytest.mark.parametrize(
    "written", [r"\frac{a}{b}", r"\frac { a } { b }", r"$\frac{a}{b}$", "\\[ \\frac{a}{b}\n\\]", r"\( \frac{a}{b} \)"]
)
def test_spaces_and_math_delimiters_of_formulas_do_not_count(written):
    assert formula_scores({"formula": r"\frac{a}{b}"}, [written]) == {"edit_distance": 0, "exact_match": 1}
    one_of_eleven = {"edit_distance": pytest.approx(1 / 11), "exact_match": 0}
    assert formula_scores({"formula": r"\frac{a}{b}"}, [written.replace("b", "c")]) == one_of_eleven


def test_a_single_delimiter_is_kept():
    assert [metrics.plain_latex(text) for text in ("$", "$a", "$$a$$")] == ["$", "$a", "a"]
