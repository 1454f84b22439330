"""Formulas are compared without what does not show."""

import pytest

from omnifusion_hf.evaluation.formulas import plain_latex, scores_of


@pytest.mark.parametrize(
    "written", [r"\frac{a}{b}", r"\frac { a } { b }", r"$\frac{a}{b}$", "\\[ \\frac{a}{b}\n\\]", r"\( \frac{a}{b} \)"]
)
def test_spaces_and_math_delimiters_do_not_count(written):
    scores = scores_of({"formula": r"\frac{a}{b}"}, [written])
    assert scores == {"edit_distance": 0, "exact_match": 1}


def test_one_wrong_character_of_eleven():
    scores = scores_of({"formula": r"\frac{a}{b}"}, [r"\frac{a}{c}"])
    assert scores == {"edit_distance": pytest.approx(1 / 11), "exact_match": 0}


def test_a_lone_delimiter_is_kept():
    assert plain_latex("$") == "$" and plain_latex("$a") == "$a" and plain_latex("$$a$$") == "a"
