"""serving/writing.py: every piece is a prefix of the answer of `inference.complete`."""

from threading import Event

import pytest
import tiny

from omnifusion_hf.inference import EXAMPLES, TINY, cut, generate_text, load, prompts
from omnifusion_hf.serving.writing import write


pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def demo():
    return load(TINY)


@pytest.fixture
def described(demo):
    """The demo model and a prompt with a long answer."""
    image = {"type": "image", "image": str(EXAMPLES.parent / "count-1.png")}
    content = [image, {"type": "text", "text": "Describe the image."}]
    return *demo, prompts(demo[1], [[{"role": "user", "content": content}]])


def asked(model_processor, words: str):
    return prompts(model_processor, [[tiny.user(tiny.image(), words)]])


def test_each_piece_is_a_longer_prefix_of_the_answer(described):
    *parts, inputs = described
    pieces = list(write(*parts, inputs, max_new_tokens=64))
    (whole,) = generate_text(*parts[:1], inputs, parts[1], max_new_tokens=64)
    assert pieces[-1].text == whole and pieces[-1].finish_reason == "stop"
    assert all(whole.startswith(each.text) for each in pieces) and len({each.text for each in pieces}) > 10
    assert [each.num_tokens for each in pieces[:3]] == [1, 2, 3]


@pytest.mark.parametrize("words", ["What colour is the sky?", "Привет", "", "1 2 3"])
def test_pieces_of_broken_bytes_and_words_are_prefixes_as_well(model, processor, words):
    inputs = asked(processor, words)
    pieces = list(write(model, processor, inputs, max_new_tokens=48))
    (whole,) = generate_text(model, inputs, processor, max_new_tokens=48)
    assert pieces[-1].text == whole and all(whole.startswith(each.text) for each in pieces)


@pytest.mark.parametrize("most, reason", [(5, "length"), (200, "stop")])
def test_the_reason_says_whether_the_answer_ended_or_was_cut_short(described, most, reason):
    *parts, inputs = described
    last = list(write(*parts, inputs, max_new_tokens=most))[-1]
    assert last.finish_reason == reason and (last.num_tokens == most) == (reason == "length")


def test_a_forced_end_at_the_last_token_counts_as_length(described, monkeypatch):
    """A converted v1.1 has forced_eos_token_id."""
    *parts, inputs = described
    monkeypatch.setattr(parts[0].generation_config, "forced_eos_token_id", parts[1].tokenizer.eos_token_id)
    reasons = [list(write(*parts, inputs, max_new_tokens=most))[-1].finish_reason for most in (5, 200)]
    assert reasons == ["length", "stop"]


def stops(whole: str) -> list[list[str]]:
    """Stop texts: a letter, words, the middle of a word, two at once, one that does not occur."""
    return [["e"], [" " + whole.split()[3]], [whole[10:25]], [whole[30:32], whole[12:14]], ["no such text"], [whole]]


@pytest.mark.parametrize("index", range(6))
def test_an_answer_is_cut_before_a_stop_text_and_no_piece_contains_it(described, index):
    *parts, inputs = described
    (whole,) = generate_text(*parts[:1], inputs, parts[1], max_new_tokens=200)
    stop = stops(whole)[index]
    pieces = list(write(*parts, inputs, stop=stop, max_new_tokens=200))
    wanted = min((whole.partition(text)[0] for text in stop), key=len).strip()
    assert pieces[-1].text == wanted == cut(whole, stop) and pieces[-1].finish_reason == "stop"
    assert all(wanted.startswith(each.text) for each in pieces)
    assert (wanted == whole) == (index == 4)  # control


def test_generation_stops_at_a_stop_text(described):
    *parts, inputs = described
    early, whole = (list(write(*parts, inputs, stop=stop, max_new_tokens=200)) for stop in (["e"], []))
    assert early[-1].num_tokens < 10 < whole[-1].num_tokens


def test_with_beams_only_the_final_piece_has_text(described, monkeypatch):
    """Like a converted v1.1, with num_beams in its generation configuration."""
    *parts, inputs = described
    monkeypatch.setattr(parts[0].generation_config, "num_beams", 3)
    pieces = list(write(*parts, inputs, max_new_tokens=64))
    assert (
        pieces[-1].text == generate_text(*parts[:1], inputs, parts[1], max_new_tokens=64)[0]
        and pieces[-1].finish_reason
    )
    assert {each.text for each in pieces[:-1]} == {""} and len(pieces) > 10
    alone = list(write(*parts, inputs, max_new_tokens=64, num_beams=1))
    assert len({each.text for each in alone}) > 10  # control: without beams it grows


def test_a_closed_answer_ends_at_the_next_token(described):
    closed, pieces = Event(), []
    for each in write(*described, closed=closed, max_new_tokens=200):
        pieces.append(each)
        if len(pieces) == 3:
            closed.set()
    assert len(pieces) == 3 and not pieces[-1].finish_reason
