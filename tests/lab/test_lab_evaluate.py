"""lab/evaluate.py: the metrics against worked examples, and questions that match their images."""

import pytest

from lab import evaluate


def test_scores():
    result = evaluate.scores(["red", "x^{2}", "12"], ["red", "x^{3}", "34"])
    assert result["accuracy"] == pytest.approx(1 / 3)
    assert result["edit_distance"] == pytest.approx((0 + 1 / 5 + 1) / 3)


@pytest.mark.parametrize("topic", evaluate.TOPICS)
def test_examples_are_fixed_by_the_split(topic):
    first, again, other = (evaluate.examples(split, topic, 4) for split in ("test", "test", "validation"))
    said = [[(e.question, e.answer, e.drawing.image.tobytes()) for e in part] for part in (first, again, other)]
    assert said[0] == said[1]
    assert not set(said[0]) & set(said[2])


def test_texts_have_the_length_that_their_topic_says():
    for topic, length in evaluate.TEXT_TOPICS.items():
        assert {len(e.answer) for e in evaluate.examples("validation", topic, 5)} == {length}


def test_large_counts_are_asked_as_often_as_small_ones():
    answers = [e.answer for e in evaluate.examples("validation", "count", 150)]
    assert sum(a in "01" for a in answers) < 0.7 * len(answers)
    assert {"0", "1", "2", "3", "4", "5"} == set(answers)
