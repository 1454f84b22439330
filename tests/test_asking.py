"""evaluation/asking.py: batches change no answer, a killed run goes on, answers of other questions are not taken."""

import conversations
import pytest
from conversations import sample, turn
from tqdm import tqdm

from omnifusion_hf.ask import complete, prompts
from omnifusion_hf.evaluation import asking
from omnifusion_hf.evaluation.answers import Answer, AnswerLog, read_answers
from omnifusion_hf.evaluation.asking import AS_IT_IS, Asker, open_log, opened, present_as_it_is
from omnifusion_hf.evaluation.questions import read_questions


@pytest.fixture
def questions(tmp_path):
    """Of different lengths, about no, one and two pictures."""
    samples = [sample(index) for index in range(5)]
    samples[1]["image"] = ["1.png", "2.png"]
    samples[1]["conversations"] = [turn("human", "Is <image> a longer question than <image> is?"), turn("gpt", "No.")]
    samples[3]["conversations"] = [turn("human", "Hello?"), turn("gpt", "Hello.")]
    del samples[3]["image"]
    return read_questions(conversations.write(tmp_path, samples))


def ask(model, processor, log_path, questions, **options) -> list:
    asker = Asker(model, processor, AnswerLog(log_path), max_new_tokens=6, **options)
    with tqdm(disable=True) as bar:
        asker.ask(questions, AS_IT_IS, present_as_it_is(processor), bar)
    return asker.answers(questions, [AS_IT_IS])


def test_the_batch_size_changes_no_answer(model, processor, questions, tmp_path):
    answers = [ask(model, processor, tmp_path / f"{n}.jsonl", questions, batch_size=n) for n in (1, 2, 5)]
    assert answers[0] == answers[1] == answers[2]
    assert len({answer.answer for answer in answers[0]}) > 1  # control: pictures and questions matter
    alone = prompts(processor, [opened(processor, questions[1])])
    assert answers[0][1].answer == complete(model, alone, processor, 6)[0]


def test_a_killed_run_goes_on(model, processor, questions, tmp_path, monkeypatch):
    whole = ask(model, processor, tmp_path / "whole.jsonl", questions, batch_size=2)
    calls = []

    def killed(*args):
        calls.append(len(args[1]["input_ids"]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return complete(*args)

    monkeypatch.setattr(asking, "complete", killed)
    with pytest.raises(KeyboardInterrupt):
        ask(model, processor, tmp_path / "answers.jsonl", questions, batch_size=2)
    assert len(read_answers(tmp_path / "answers.jsonl")) == 2
    assert ask(model, processor, tmp_path / "answers.jsonl", questions, batch_size=2) == whole
    assert calls == [2, 2, 2, 1]  # the first two were not asked again
    assert (tmp_path / "answers.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_answers_of_other_questions_are_not_taken(model, processor, questions, tmp_path):
    ask(model, processor, tmp_path / "answers.jsonl", questions[:1])
    asked = [turn("human", "<image>\nAnd this?"), turn("gpt", "No.")]
    for other in (sample(0, conversations=asked), sample(0, image="1.png")):
        path = conversations.write(tmp_path, [other, sample(1)])
        with pytest.raises(ValueError, match="answers another question, .* named 's0'"):
            ask(model, processor, tmp_path / "answers.jsonl", read_questions(path))
    path = conversations.write(tmp_path, [sample(0), sample(1)])
    assert len(ask(model, processor, tmp_path / "answers.jsonl", read_questions(path))) == 2


def test_answers_under_other_settings_are_not_mixed(tmp_path):
    open_log(tmp_path / "out", {"model": "misspelt", "seed": 0})  # nothing was answered
    open_log(tmp_path / "out", {"model": "a", "seed": 0}).add([Answer("0", "t", "?", [], ["x"], "x", 1.0)])
    assert len(open_log(tmp_path / "out", {"model": "a", "seed": 0}).answers) == 1
    with pytest.raises(ValueError, match="model='a', now it is 'b'"):
        open_log(tmp_path / "out", {"model": "b", "seed": 0})
    (tmp_path / "out/settings.json").unlink()
    with pytest.raises(ValueError, match="model=None, now it is 'a'"):
        open_log(tmp_path / "out", {"model": "a", "seed": 0})
