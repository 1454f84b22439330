"""serving/writing.py: every piece is a prefix of the answer of `inference.complete`."""

import pytest
import tiny
from PIL import Image

from omnifusion_hf.inference import EXAMPLES, cut, generate_text, prompts
from omnifusion_hf.serving.writing import Written, write


pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def described(demo):
    """The bundled model and a prompt with a long answer."""
    image = Image.open(EXAMPLES.parent / "count-1.png")
    return *demo, prompts(demo[1], [[tiny.user(image, "Describe the image.")]])


def answer_to(model, processor, inputs, most: int) -> str:
    return generate_text(model, inputs, processor, max_new_tokens=most)[0]


def last(*parts, **options) -> Written:
    return list(write(*parts, **options))[-1]


def test_pieces_grow_token_by_token(described):
    pieces = list(write(*described, max_new_tokens=64))
    assert pieces[-1].finish_reason == "stop" and len({each.text for each in pieces}) > 10
    assert [each.num_tokens for each in pieces[:3]] == [1, 2, 3]


@pytest.mark.parametrize("words", ["What colour is the sky?", "Привет", "", "1 2 3", "Describe the image."])
def test_each_piece_is_a_prefix_of_the_answer_also_of_broken_bytes_and_words(model, processor, words):
    parts = model, processor, prompts(processor, [[tiny.user(tiny.image(), words)]])
    pieces, whole = list(write(*parts, max_new_tokens=48)), answer_to(*parts, 48)
    assert pieces[-1].text == whole and all(whole.startswith(each.text) for each in pieces)


@pytest.mark.parametrize("forced", [False, True])
def test_the_reason_says_whether_the_answer_ended_or_was_cut_short(described, monkeypatch, forced):
    """Also where an end is forced at the last token: a converted v1.1 has forced_eos_token_id."""
    model, processor, _ = described
    if forced:
        monkeypatch.setattr(model.generation_config, "forced_eos_token_id", processor.tokenizer.eos_token_id)
    for most, reason in ((5, "length"), (200, "stop")):
        written = last(*described, max_new_tokens=most)
        assert written.finish_reason == reason and (written.num_tokens == most) == (reason == "length")


def stops(whole: str) -> list[list[str]]:
    """Stop texts: a letter, words, the middle of a word, two at once, one that does not occur."""
    return [["e"], [" " + whole.split()[3]], [whole[10:25]], [whole[30:32], whole[12:14]], ["no such text"], [whole]]


@pytest.mark.parametrize("index", range(6))
def test_an_answer_is_cut_before_a_stop_text_and_no_piece_contains_it(described, index):
    whole = answer_to(*described, 200)
    stop = stops(whole)[index]
    pieces = list(write(*described, stop=stop, max_new_tokens=200))
    wanted = min((whole.partition(text)[0] for text in stop), key=len).strip()
    assert pieces[-1].text == wanted == cut(whole, stop) and pieces[-1].finish_reason == "stop"
    assert all(wanted.startswith(each.text) for each in pieces)
    assert (pieces[-1].num_tokens < 18) == (index < 4)  # generation stops there
    assert (wanted == whole) == (index == 4)  # control


def test_with_beams_only_the_final_piece_has_text(described, monkeypatch):
    """Like a converted v1.1, with beams in its generation configuration, with which transformers' streamers fail."""
    for name, value in (("num_beams", 3), ("early_stopping", True)):
        monkeypatch.setattr(described[0].generation_config, name, value)
    *pieces, final = write(*described, max_new_tokens=64)
    assert final.text == answer_to(*described, 64) and final.finish_reason
    assert {each.text for each in pieces} == {""} and len(pieces) > 9
    alone = write(*described, max_new_tokens=64, num_beams=1)
    assert len({each.text for each in alone}) > 10  # control: without beams it grows
