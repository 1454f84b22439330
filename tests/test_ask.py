"""Asking: bundled examples are answered right because of their pictures."""

import json

import pytest
from PIL import Image

from omnifusion_hf import ask
from omnifusion_hf.cli import main


@pytest.fixture(scope="module")
def tiny_model():
    return ask.load(ask.TINY)


def accuracy(examples: list[dict]) -> float:
    return sum(example["answer"] == example["truth"] for example in examples) / len(examples)


def test_bundled_examples_are_answered_right(tiny_model):
    assert accuracy(ask.answer_examples(*tiny_model)) >= 0.8


def test_bundled_examples_fail_without_their_pictures(tiny_model, monkeypatch):
    """Control: the same questions about a blank picture."""
    blank = Image.new("RGB", (192, 192), "white")
    monkeypatch.setattr(ask, "answer", lambda *args, original=ask.answer: original(*args[:2], [blank], *args[3:]))
    assert accuracy(ask.answer_examples(*tiny_model)) <= 0.4


def test_bundled_checkpoint_is_small():
    files = [path for path in ask.TINY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10e6
    assert not [path for path in files if path.suffix in (".bin", ".pt")]


def test_command_answers_about_a_picture_file(capsys):
    example = json.loads(ask.EXAMPLES.read_text())[0]
    assert main(["ask", str(ask.EXAMPLES.parent / example["picture"]), example["question"]]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "nothing to ask"),
        (["nowhere.png", "What?"], "No picture at `nowhere.png`"),
        ([__file__], "the question is missing"),
    ],
)
def test_mistakes_get_one_line(words, message, capsys):
    assert main(["ask", *words]) == 2
    assert message in capsys.readouterr().err
