"""lab/evaluate.py: metrics against worked examples, fixed questions, and the evaluation of the bundled model."""

import pytest

from lab import evaluate, small
from omnifusion_hf.evaluation.answers import Answer


def test_scores_are_exact_and_by_edit_distance():
    pairs = [("red", "red"), ("x^{2}", "x^{3}"), ("Red", "red")]
    result = evaluate.scores([Answer("0", "t", "?", [], [truth], text, 0.0) for text, truth in pairs])
    assert result["accuracy"] == pytest.approx(1 / 3)
    assert result["edit_distance"] == pytest.approx((0 + 1 / 5 + 1 / 3) / 3)


def test_the_demo_model_needs_the_right_image(demo):
    results = evaluate.evaluate(*demo, "test", 6, ("colour", "digit"))
    for row in results.values():
        assert row["n"] == 6 and row["accuracy"] >= 5 / 6 and row["blind_accuracy"] <= 0.5
    assert "| colour | 6 | " in evaluate.as_markdown(results)
    assert "blind_accuracy" not in evaluate.evaluate(*demo, "test", 1, ("digit",), blind=False)["digit"]


DRAW = {evaluate: evaluate.examples, small: small.small_examples}


@pytest.mark.parametrize("world, topic", [(world, topic) for world in DRAW for topic in world.TOPICS])
def test_examples_are_fixed_by_split_and_topic_and_texts_have_its_length(world, topic):
    first, again, other = (DRAW[world](split, topic, 4) for split in ("test", "test", "validation"))
    found = [[(e.question, e.answer, e.drawing.image.tobytes()) for e in part] for part in (first, again, other)]
    assert found[0] == found[1] and not set(found[0]) & set(found[2])
    lengths = world.TEXT_TOPICS
    assert topic not in lengths or {len(e.answer) for e in first + other} == {lengths[topic]}


def test_large_counts_are_as_frequent_as_small_ones():
    answers = [e.answer for e in evaluate.examples("validation", "count", 150)]
    assert sum(a in "01" for a in answers) < 0.7 * len(answers) and set(answers) == set("012345")
