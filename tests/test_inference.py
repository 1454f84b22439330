"""Asking: bundled examples are answered right because of their images."""

import json

import pytest
from PIL import Image

from omnifusion_hf import inference as ask
from omnifusion_hf.cli import main


@pytest.fixture(scope="module")
def tiny_model():
    return ask.load(ask.TINY)


def accuracy(examples: list[dict]) -> float:
    return sum(example["answer"] == example["truth"] for example in examples) / len(examples)


def test_bundled_examples_are_answered_right(tiny_model):
    assert accuracy(ask.answer_examples(*tiny_model)) >= 0.8


def test_bundled_examples_fail_without_their_images(tiny_model, monkeypatch):
    """Control: the same questions about a blank image."""
    blank = Image.new("RGB", (192, 192), "white")
    monkeypatch.setattr(ask, "answer", lambda *args, original=ask.answer: original(*args[:2], [blank], *args[3:]))
    assert accuracy(ask.answer_examples(*tiny_model)) <= 0.4


def test_bundled_checkpoint_is_small():
    files = [path for path in ask.TINY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10e6
    assert not [path for path in files if path.suffix in (".bin", ".pt")]


def test_command_answers_about_an_image_file(capsys):
    example = json.loads(ask.EXAMPLES.read_text())[0]
    assert main(["ask", str(ask.EXAMPLES.parent / example["image"]), example["question"]]) == 0
    assert capsys.readouterr().out.strip()


def test_a_prompt_longer_than_the_context_is_refused_and_an_answer_stays_within_it(tiny_model, monkeypatch):
    model, processor = tiny_model
    with pytest.raises(ValueError, match=r"takes 1\d\d\d tokens, .* room for 1024"):
        ask.answer(model, processor, [], "word " * 1020)
    given = []
    monkeypatch.setattr(ask, "complete", lambda model, inputs, processor, most: given.append(most) or [""])
    for question in ("word", "word " * 950):
        ask.answer(model, processor, [], question, max_new_tokens=100)
    assert given[0] == 100 > given[1] > 0
    del model.config.text_config.max_position_embeddings  # as in BLOOM
    try:
        assert ask.answer(model, processor, [], "word " * 1020, 100) == "" and given[2] == 100
    finally:
        model.config.text_config.max_position_embeddings = 1024


@pytest.mark.parametrize("name", ["/no/where", "no/where", "nowhere", "../nowhere"])
def test_a_model_that_is_missing_is_told_in_one_line(name, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for long to reach the Hub
    assert main(["ask", "--text-only", "Hello", "--model", name]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "omnifusion: error" in line]
    assert f"there is no folder {name}, and the Hub" in line


def test_a_folder_that_is_there_but_broken_is_not_called_missing(tmp_path, capsys):
    assert main(["ask", "--text-only", "Hello", "--model", str(tmp_path)]) == 2
    assert "no folder" not in (said := capsys.readouterr().err) and str(tmp_path) in said


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "nothing to ask"),
        (["nowhere.png", "What?"], "No image at `nowhere.png`"),
        ([__file__], "the question is missing"),
        (
            ["What colour is the star?"],
            "'What colour is the star?' is asked about 0 images; write omnifusion ask IMAGE",
        ),
        (["--text-only", __file__, "What?"], "'What?' is asked about 1 images"),
    ],
)
def test_mistakes_get_one_line(words, message, capsys):
    assert main(["ask", *words]) == 2
    assert message in capsys.readouterr().err
