"""lab/tokenizer.py: written characters stay single, LaTeX commands are one token, any text comes back."""

import pytest

from lab.tokenizer import COMMANDS, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize("written", ["CAT", "WHAT", "1024", "0O1I"])
def test_written_characters_are_tokens_of_their_own(tokenizer, written):
    assert tokenizer.tokenize(written) == list(written)


def test_wording_does_merge(tokenizer):
    """Control of the test above: the tokenizer is no mere list of characters."""
    assert tokenizer.tokenize("circle") == ["circle"]


def test_latex_commands_are_one_token(tokenizer):
    latex = "\\frac{x}{12}+\\alpha^{n}"
    assert tokenizer.tokenize(latex) == ["\\frac", *"{x}{12}+", "\\alpha", *"^{n}"]
    assert all(len(tokenizer.tokenize(command)) == 1 for command in COMMANDS)


@pytest.mark.parametrize("text", ["What is it?", "Größe 10 € 絵", "\\sum_{k=1}^{n}k", " two  spaces\n"])
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_nothing_is_added_by_itself(tokenizer):
    assert tokenizer("")["input_ids"] == []
