"""Inference: the bundled examples are answered from their images; answers stay within the context; one-line errors."""

import pytest
import torch
from PIL import Image

from omnifusion_hf import inference
from omnifusion_hf.cli import main
from omnifusion_hf.inference import TINY, answer_question, max_new_tokens_within_context


@pytest.fixture(scope="module")
def tiny_model():
    return inference.load(TINY)


def accuracy(examples: list[dict]) -> float:
    return sum(example["answer"] == example["truth"] for example in examples) / len(examples)


def test_the_bundled_questions_are_answered_right_from_their_images(tiny_model, monkeypatch):
    assert accuracy(inference.answer_examples(*tiny_model)) >= 0.8
    blank = Image.new("RGB", (192, 192), "white")  # control
    monkeypatch.setattr(inference, "answer_question", lambda *args: answer_question(*args[:2], [blank], *args[3:]))
    assert accuracy(inference.answer_examples(*tiny_model)) <= 0.4


def test_the_bundled_checkpoint_is_small_and_without_pickles():
    files = [path for path in TINY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10e6
    assert not [path for path in files if path.suffix in (".bin", ".pt")]


def room(tokens: int, context: int | None) -> int:
    inputs = {"input_ids": torch.zeros(1, tokens, dtype=torch.long)}
    return max_new_tokens_within_context(inputs, context, max_new_tokens=15)


def test_an_answer_stays_within_the_context_and_a_prompt_that_fills_it_is_refused(tiny_model):
    given = [(90, 100), (99, 100), (80, 100), (85, 100), (5000, None)]
    assert [room(*each) for each in given] == [10, 1, 15, 15, 15]
    with pytest.raises(ValueError, match="takes 100 tokens, but the model's context has 100"):
        room(100, 100)
    with pytest.raises(ValueError, match=r"takes 1\d\d\d tokens, .* has 1024"):
        answer_question(*tiny_model, [], "word " * 1020)


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "no question"),
        (["nowhere.png", "What?"], "No image at `nowhere.png`"),
        (["http://no.such.host.invalid/0.png", "What?"], "omnifusion: error: http://no.such.host.invalid/0.png"),
        ([__file__], "the question is missing"),
        (["What colour is it?"], "'What colour is it?' comes with 0 images; write omnifusion ask IMAGE"),
        (["--text-only", __file__, "What?"], "'What?' comes with 1 images"),
    ],
)
def test_a_wrong_question_is_one_line(words, message, capsys):
    assert main(["ask", *words]) == 2
    assert message in (said := capsys.readouterr().err) and said.count("omnifusion: error: ") == 1
