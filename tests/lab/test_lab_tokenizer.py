"""lab/tokenizer.py: written characters stay single, LaTeX commands are one token, every text is restored."""

import pytest

from lab.tokenizer import COMMANDS, build_tokenizer


TOKENIZER = build_tokenizer()


def test_written_characters_and_latex_commands_are_tokens_of_their_own():
    for written in ("CAT", "WHAT", "1024", "0O1I"):
        assert TOKENIZER.tokenize(written) == list(written)
    assert TOKENIZER.tokenize("circle") == ["circle"]  # control: wording merges
    assert TOKENIZER.tokenize("\\frac{x}{12}+\\alpha^{n}") == ["\\frac", *"{x}{12}+", "\\alpha", *"^{n}"]
    assert all(len(TOKENIZER.tokenize(command)) == 1 for command in COMMANDS)


@pytest.mark.parametrize("text", ["", "What is it?", "Größe 10 € 絵", "\\sum_{k=1}^{n}k", " two  spaces\n"])
def test_every_text_is_restored_and_no_token_is_added(text):
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text and ids == TOKENIZER(text, add_special_tokens=False)["input_ids"]
