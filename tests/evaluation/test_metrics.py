"""evaluation/metrics.py: against worked examples and published figures."""

import pytest

from omnifusion_hf.evaluation.metrics import (
    difference_interval,
    edit_distance,
    exact_match,
    normalised_edit_distance,
    wilson_interval,
)


@pytest.mark.parametrize("a, b, distance", [("", "", 0), ("abc", "abc", 0), ("abc", "", 3), ("kitten", "sitting", 3)])
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize("a, b, share", [("", "", 0), ("abc", "abc", 0), ("abc", "", 1), ("x^{2}", "x^{3}", 0.2)])
def test_normalised_edit_distance(a, b, share):
    assert normalised_edit_distance(a, b) == pytest.approx(share)


def test_exact_match_is_blind_to_case_spaces_and_the_last_full_stop_alone():
    for same in ("Two  birds", " two birds.\n", "TWO BIRDS"):
        assert exact_match(same, ["one bird", "two birds"]) == 1
    for other in ("two bird", "twobirds", "two birds?", ""):
        assert exact_match(other, ["one bird", "two birds"]) == 0


def test_wilson_interval_of_published_figures():
    """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (right, n), bounds in published.items():
        assert wilson_interval(right, n) == pytest.approx(bounds, abs=5e-5)


def test_wilson_interval_of_nothing_says_nothing():
    assert wilson_interval(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson_interval(3, 2)


def test_difference_interval_of_published_figures():
    """Newcombe 1998, Statistics in Medicine 17, 873-890, table II, method 10."""
    published = {(56, 70, 48, 80): (0.0524, 0.3339), (9, 10, 3, 10): (0.1705, 0.8090), (10, 10, 0, 20): (0.6791, 1.0)}
    for counts, bounds in published.items():
        assert difference_interval(*counts) == pytest.approx(bounds, abs=5e-5)
