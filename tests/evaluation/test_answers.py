"""evaluation/answers.py: records and their file, in which no answers are mixed."""

import json
from contextlib import nullcontext

import conversations
import pytest
from conversations import sample, turn
from tqdm import tqdm

from omnifusion_hf.evaluation.answers import CLEAN, Answer, AnswerLog, Evaluator, open_log, read_answers
from omnifusion_hf.evaluation.questions import prompts_of, read_questions


FIRST = Answer("0", "colours", "What colour is\nit?", ["a.png"], ["red", "crimson"], "röd\u2028", 0.0)
SECOND = Answer("1", "colours", "And now?", ["a.png"], ["red"], "red", 1.0, "blur", 2.0)


def first(**changes) -> str:
    return json.dumps(vars(FIRST) | changes)


@pytest.mark.parametrize(
    "text, message",
    [
        (FIRST.as_line() + "{", ", line 2 is not JSON"), (FIRST.as_line() + '{"a": 1}', ", line 2 is not an answer"),
        (FIRST.as_line() + "[]", ", .*got list"), (FIRST.as_line().encode("utf-16"), " is not UTF-8"),
        (first(task=["t"]), r", line 1: `task` of an answer must be text, got \['t'\]"),
        (first(answer=None), ", .*`answer` of an answer must be text, got None"),
        (first(images="abc"), ", .*`images` of an answer must be a list of texts, got 'abc'"),
        (first(truth="cat"), ", .*`truth` of an answer must be a list of texts"),
        (first(truth=[1]), ", .*`truth` of an answer must be a list of texts"),
        (first(score="1"), ", .*`score` of an answer must be a number or null"),
        (first(score=40), ", line 1: the score of colours, 0 must lie in 0..1, got 40"),
        (first(score=float("nan")), ", line 1: the score of colours, 0 must lie in 0..1, got nan"),
        (first(strength="2"), ", .*`strength` of an answer must be a number or null"),
    ],
)  # fmt: skip
def test_what_is_not_an_answer_is_refused_by_file_line_and_field(tmp_path, text, message):
    (tmp_path / "answers.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"answers.jsonl{message}"):
        read_answers(tmp_path / "answers.jsonl")


@pytest.mark.parametrize("cut", [0, 1, 20, 1000])
def test_answers_survive_their_file_and_a_kill_that_leaves_a_half_written_line(tmp_path, cut):
    log = AnswerLog(tmp_path / "a/answers.jsonl")
    log.add([FIRST, SECOND])
    whole = log.path.read_bytes()
    row = json.loads(whole.decode().split("\n")[1])
    assert row["truth"] == ["red"] and row["perturbation"] == "blur"
    log.path.write_bytes(whole[: max(len(whole) - cut, 3)])
    resumed = AnswerLog(log.path)
    assert resumed.answers == ([FIRST, SECOND] if cut < 2 else [FIRST] if cut < len(SECOND.as_line()) else [])
    resumed.add([SECOND])
    assert read_answers(log.path)[-1] == SECOND


def test_answers_under_other_damaged_or_missing_settings_are_not_mixed(tmp_path):
    open_log(tmp_path / "out", {"model": "misspelt", "seed": 0})  # without answers
    open_log(tmp_path / "out", {"model": "a", "seed": 0}).add([FIRST])
    assert len(open_log(tmp_path / "out", {"model": "a", "seed": 0}).answers) == 1
    (tmp_path / "out/answers.jsonl").write_text(FIRST.as_line() + "{cut off")
    with pytest.raises(ValueError, match="model='a', now it is 'b'"):
        open_log(tmp_path / "out", {"model": "b", "seed": 0})
    assert (tmp_path / "out/answers.jsonl").read_text().endswith("{cut off")  # a refusal changes nothing
    damage = {'{"model': "settings.json is not JSON", "[]": "settings.json holds no settings"}
    for text, message in (damage | {"{}": "model=None, now it is 'a'"}).items():
        (tmp_path / "out/settings.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            open_log(tmp_path / "out", {"model": "a"})
    (tmp_path / "out/settings.json").unlink()
    with pytest.raises(ValueError, match=message):
        open_log(tmp_path / "out", {"model": "a"})


def evaluate(model, processor, log_path, questions, **options) -> list:
    evaluator = Evaluator(model, processor, AnswerLog(log_path), max_new_tokens=6, **options)
    with tqdm(disable=True) as bar:
        evaluator.run(questions, CLEAN, lambda batch: prompts_of(processor, batch), bar)
    return evaluator.answers(questions, [CLEAN])


def test_answers_to_other_questions_of_the_same_name_are_refused(model, processor, tmp_path):
    turns = [turn("human", "<image>\nAnd this?"), turn("gpt", "No.")]
    for number, first in enumerate((sample(0), sample(0, conversations=turns), sample(0, image="1.png"), sample(0))):
        questions = read_questions(conversations.write(tmp_path, [first, sample(1)]))
        other = pytest.raises(ValueError, match="answers another question, .* named 's0'")
        with other if number in (1, 2) else nullcontext():
            assert len(evaluate(model, processor, tmp_path / "answers.jsonl", questions)) == 2
