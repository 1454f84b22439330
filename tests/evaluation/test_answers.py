"""evaluation/answers.py: records of answers, their file, and what a killed run leaves of it."""

import json

import pytest

from omnifusion_hf.evaluation.answers import Answer, AnswerLog, read_answers, write_answers


FIRST = Answer("0", "colours", "What colour is\nit?", ["a.png"], ["red", "crimson"], "röd\u2028", 0.0)
SECOND = Answer("1", "colours", "And now?", ["a.png"], ["red"], "red", 1.0, "blur", 2.0)


def test_answers_survive_their_file(tmp_path):
    write_answers(tmp_path / "a" / "answers.jsonl", [FIRST, SECOND])
    assert read_answers(tmp_path / "a" / "answers.jsonl") == [FIRST, SECOND]
    row = json.loads((tmp_path / "a" / "answers.jsonl").read_text(encoding="utf-8").split("\n")[1])
    assert row["truth"] == ["red"] and row["perturbation"] == "blur"


@pytest.mark.parametrize(
    "line, message", [("{", "line 2 is not JSON"), ('{"a": 1}', "line 2 is no answer"), ("[]", "got list")]
)
def test_a_line_that_is_no_answer_is_named(tmp_path, line, message):
    (tmp_path / "answers.jsonl").write_text(FIRST.as_line() + line, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_answers(tmp_path / "answers.jsonl")


def test_a_score_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="0..1, got 40"):
        Answer("0", "t", "q", [], ["a"], "a", 40)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task": ["t"]}, r"line 1: `task` of an answer must be text, got \['t'\]"),
        ({"answer": None}, "`answer` of an answer must be text, got None"),
        ({"images": "abc"}, "`images` of an answer must be a list of texts, got 'abc'"),
        ({"truth": "cat"}, "`truth` of an answer must be a list of texts"),
        ({"truth": [1]}, "`truth` of an answer must be a list of texts"),
        ({"score": None}, "`score` of an answer must be a number"),
        ({"score": float("nan")}, "line 1: the score of colours, 0 must lie in 0..1, got nan"),
        ({"strength": "2"}, "`strength` of an answer must be a number or null"),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path, changes, message):
    (tmp_path / "answers.jsonl").write_text(json.dumps(vars(FIRST) | changes), encoding="utf-8")
    with pytest.raises(ValueError, match=f"answers.jsonl, .*{message}"):
        read_answers(tmp_path / "answers.jsonl")


def test_answers_of_another_encoding_are_named(tmp_path):
    (tmp_path / "answers.jsonl").write_text(FIRST.as_line(), encoding="utf-16")
    with pytest.raises(ValueError, match="answers.jsonl is not UTF-8"):
        read_answers(tmp_path / "answers.jsonl")


@pytest.mark.parametrize("cut", [1, 20, 1000])
def test_a_log_goes_on_where_a_killed_run_stopped(tmp_path, cut):
    """What was half written is asked again; the control is a file that was closed in time."""
    log = AnswerLog(tmp_path / "answers.jsonl")
    log.add([FIRST, SECOND])
    whole = log.path.read_bytes()
    assert AnswerLog(log.path).answers == [FIRST, SECOND]
    log.path.write_bytes(whole[: max(len(whole) - cut, 3)])
    resumed = AnswerLog(log.path)
    assert resumed.answers == ([FIRST] if cut < len(SECOND.as_line()) else [])
    resumed.add([SECOND])
    assert read_answers(log.path)[-1] == SECOND
