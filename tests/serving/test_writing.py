"""serving/writing.py: an answer grows to what `ask` answers, and nothing that was told is taken back."""

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


def test_what_is_told_is_a_beginning_of_the_answer_of_ask_and_grows(described):
    *parts, inputs = described
    told = list(write(*parts, inputs, max_new_tokens=64))
    (whole,) = generate_text(*parts[:1], inputs, parts[1], max_new_tokens=64)
    assert told[-1].text == whole and told[-1].finish_reason == "stop"
    assert all(whole.startswith(each.text) for each in told) and len({each.text for each in told}) > 10
    assert [each.num_tokens for each in told[:3]] == [1, 2, 3]


@pytest.mark.parametrize("words", ["What colour is the sky?", "Привет", "", "1 2 3"])
def test_a_random_models_answer_of_bytes_and_halves_of_words_grows_too(model, processor, words):
    inputs = asked(processor, words)
    told = list(write(model, processor, inputs, max_new_tokens=48))
    (whole,) = generate_text(model, inputs, processor, max_new_tokens=48)
    assert told[-1].text == whole and all(whole.startswith(each.text) for each in told)


@pytest.mark.parametrize("most, reason", [(5, "length"), (200, "stop")])
def test_the_reason_says_whether_the_answer_ended_or_was_cut_short(described, most, reason):
    *parts, inputs = described
    last = list(write(*parts, inputs, max_new_tokens=most))[-1]
    assert last.finish_reason == reason and (last.num_tokens == most) == (reason == "length")


def test_an_end_that_was_forced_at_the_last_token_is_no_end(described, monkeypatch):
    """A converted v1.1 has forced_eos_token_id."""
    *parts, inputs = described
    monkeypatch.setattr(parts[0].generation_config, "forced_eos_token_id", parts[1].tokenizer.eos_token_id)
    reasons = [list(write(*parts, inputs, max_new_tokens=most))[-1].finish_reason for most in (5, 200)]
    assert reasons == ["length", "stop"]


def stops(whole: str) -> list[list[str]]:
    """Texts to stop at: a letter, words, the middle of one, two at once, one that does not come."""
    return [["e"], [" " + whole.split()[3]], [whole[10:25]], [whole[30:32], whole[12:14]], ["no such text"], [whole]]


@pytest.mark.parametrize("index", range(6))
def test_a_text_to_stop_at_cuts_the_answer_before_it_and_was_never_told(described, index):
    *parts, inputs = described
    (whole,) = generate_text(*parts[:1], inputs, parts[1], max_new_tokens=200)
    stop = stops(whole)[index]
    told = list(write(*parts, inputs, stop=stop, max_new_tokens=200))
    wanted = min((whole.partition(text)[0] for text in stop), key=len).strip()
    assert told[-1].text == wanted == cut(whole, stop) and told[-1].finish_reason == "stop"
    assert all(wanted.startswith(each.text) for each in told)
    assert (wanted == whole) == (index == 4)  # control


def test_the_model_stops_writing_where_the_answer_is_cut(described):
    *parts, inputs = described
    early, whole = (list(write(*parts, inputs, stop=stop, max_new_tokens=200)) for stop in (["e"], []))
    assert early[-1].num_tokens < 10 < whole[-1].num_tokens


def test_with_beams_the_finished_answer_is_told_at_once(described, monkeypatch):
    """As a converted v1.1 has it: num_beams in the folder's generation configuration."""
    *parts, inputs = described
    monkeypatch.setattr(parts[0].generation_config, "num_beams", 3)
    told = list(write(*parts, inputs, max_new_tokens=64))
    assert (
        told[-1].text == generate_text(*parts[:1], inputs, parts[1], max_new_tokens=64)[0] and told[-1].finish_reason
    )
    assert {each.text for each in told[:-1]} == {""} and len(told) > 10
    alone = list(write(*parts, inputs, max_new_tokens=64, num_beams=1))
    assert len({each.text for each in alone}) > 10  # control: without beams it grows


def test_a_closed_answer_ends_at_the_next_token(described):
    closed, told = Event(), []
    for each in write(*described, closed=closed, max_new_tokens=200):
        told.append(each)
        if len(told) == 3:
            closed.set()
    assert len(told) == 3 and not told[-1].finish_reason
