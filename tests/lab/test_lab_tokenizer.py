"""lab/tokenizer.py: written characters stay single, LaTeX commands are one token, every text is restored."""

import pytest

from lab.tokenizer import COMMANDS, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize("written", ["CAT", "WHAT", "1024", "0O1I"])
def test_written_characters_are_tokens_of_their_own(tokenizer, written):
    assert tokenizer.tokenize(written) == list(written)
    assert tokenizer.tokenize("circle") == ["circle"]  # control: wording merges


def test_latex_commands_are_one_token(tokenizer):
    latex = "\\frac{x}{12}+\\alpha^{n}"
    assert tokenizer.tokenize(latex) == ["\\frac", *"{x}{12}+", "\\alpha", *"^{n}"]
    assert all(len(tokenizer.tokenize(command)) == 1 for command in COMMANDS)


@pytest.mark.parametrize("text", ["", "What is it?", "Größe 10 € 絵", "\\sum_{k=1}^{n}k", " two  spaces\n"])
def test_every_text_is_restored_and_no_token_is_added(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and ids == tokenizer(text, add_special_tokens=False)["input_ids"]
