"""serving/batches.py: answers that wait share a call of `generate`, and are those of each prompt alone."""

import threading
from queue import SimpleQueue
from unittest.mock import Mock

import pytest
import tiny
import torch
from PIL import Image

from omnifusion_hf.inference import TINY, generate_text, prompts
from omnifusion_hf.serving.batches import Batches
from omnifusion_hf.serving.writing import Answer


pytestmark = pytest.mark.timeout(120)
SHAPE, COUNT = (Image.open(TINY / f"images/{name}-1.png") for name in ("shape", "count"))
CHATS = [
    [tiny.user(COUNT, "Describe the image.")],
    [tiny.user("Hello")],
    [tiny.user(SHAPE, COUNT, "How many circles are there?")],
    [tiny.user(SHAPE, "What shape is black?")],
]
GREEDY = {"max_new_tokens": 32}


@pytest.fixture
def calls(demo, monkeypatch) -> list[int]:
    """The batch size of each call of `generate`."""
    calls, generate = [], demo[0].generate
    counted = lambda **options: calls.append(len(options["input_ids"])) or generate(**options)  # noqa: E731
    monkeypatch.setattr(demo[0], "generate", counted)
    return calls


def write_all(demo, size: int, settings: list[dict], stop=(), closed=()) -> list[list]:
    """What is sent for each of the chats, which begin to wait before the first is answered."""
    batches, go_on, sent = Batches(*demo, size), threading.Event(), []
    batches.thread.submit(go_on.wait)
    for index, (chat, options) in enumerate(zip(CHATS, settings)):
        queue = SimpleQueue()
        answer = Answer(prompts(demo[1], [chat]), queue.put, stop)
        if index in closed:
            answer.closed.set()
        batches.add(answer, **options)
        sent.append(queue)
    go_on.set()
    batches.thread.shutdown()
    return [[queue.get() for _ in range(queue.qsize())] for queue in sent]


@pytest.mark.parametrize("size, shared", [(4, [4]), (3, [3, 1]), (1, [1, 1, 1, 1])])
def test_waiting_answers_share_a_call_and_are_those_of_each_alone(demo, calls, size, shared):
    sent = write_all(demo, size, [GREEDY] * 4)
    assert calls == shared
    alone = [generate_text(demo[0], prompts(demo[1], [chat]), demo[1], 32)[0] for chat in CHATS]
    for pieces, text in zip(sent, alone):
        assert pieces[-1].text == text and all(text.startswith(piece.text) for piece in pieces)
        assert [piece.num_tokens for piece in pieces] == list(range(1, len(pieces) + 1))  # none after its own end
        assert [piece.finish_reason is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert len(set(alone)) == 4 and len({len(pieces) for pieces in sent}) > 1  # control: texts and lengths differ


def test_a_stop_text_ends_its_answer_and_no_other(demo, calls):
    described, _, _, shape = write_all(demo, 4, [GREEDY] * 4, stop=["a"])
    assert shape[-1].text == "st" and described[-1].finish_reason == "stop" and "a" not in described[-1].text
    assert calls == [4] and len(described) != len(shape)


SHORT, SAMPLED = {"max_new_tokens": 4}, GREEDY | {"do_sample": True, "temperature": 0.5}
SETTINGS = {  # of four answers, and how many of them share a call
    "length": ([SHORT, GREEDY, SHORT, GREEDY], [2, 2]),
    "sampled": ([SAMPLED] * 3 + [GREEDY], [3, 1]),
    "seed": ([GREEDY | {"seed": 1}] * 2 + [GREEDY] * 2, [1, 1, 2]),
    "penalty": ([GREEDY | {"repetition_penalty": 1.2}] * 2 + [GREEDY | {"repetition_penalty": 1.0}] * 2, [1, 1, 2]),
    "beams": ([GREEDY | {"num_beams": 2}] * 4, [1, 1, 1, 1]),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_only_answers_of_the_same_settings_and_independent_of_their_batch_share_a_call(demo, calls, kind):
    settings, shared = SETTINGS[kind]
    assert all(pieces[-1].finish_reason for pieces in write_all(demo, 4, settings)) and calls == shared


def test_a_seed_decides_its_own_answer_alone(demo):
    seeded = write_all(demo, 4, [SAMPLED | {"temperature": 5.0, "seed": 1}] * 2)
    after = [write_all(demo, 4, [SHORT | {"seed": 1}]) and torch.rand(1).item() for _ in range(2)]
    assert after[0] != after[1] and len({pieces[-1].text for pieces in seeded}) == 2  # control: other chats


def test_an_answer_that_nobody_waits_for_is_not_written(demo, calls):
    sent = write_all(demo, 4, [GREEDY] * 4, closed=[0, 2])
    assert calls == [2] and [bool(pieces) for pieces in sent] == [False, True, False, True]


def test_an_error_reaches_every_answer_of_its_batch_and_the_next_is_written(demo, monkeypatch):
    star = demo[0].generate(**prompts(demo[1], [CHATS[3]]), **GREEDY)
    monkeypatch.setattr(demo[0], "generate", Mock(side_effect=[RuntimeError("out of memory"), star]))
    *failed, last = write_all(demo, 3, [GREEDY] * 4)
    assert {str(pieces[-1]) for pieces in failed} == {"out of memory"} and last[-1].text == "star"
