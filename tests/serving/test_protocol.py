"""serving/protocol.py: valid requests, and the refusal of all others by field."""

import json

import pytest

from omnifusion_hf.serving.protocol import ChatRequest, Refusal, read_request


HELLO = [{"role": "user", "content": "Hello"}]
HELLO_BODY = json.dumps({"model": "m", "messages": HELLO}).encode()
IMAGE = {"type": "image_url", "image_url": {"url": "a.png"}}
SAMPLED = {"do_sample": True, "num_beams": 1}


def request(**fields) -> ChatRequest:
    return read_request(json.dumps({"model": "m", "messages": HELLO} | fields).encode(), ChatRequest)


def content(*parts) -> dict:
    return turn(role="user", content=list(parts))


def turn(**fields) -> dict:
    return {"messages": [fields]}


NO, MISSING, UNKNOWN = "unsupported_value", "missing_required_parameter", "unknown_parameter"
FIRST = "messages[0].content"


@pytest.mark.parametrize(
    "fields, param, code",
    [
        ({"n": 2}, "n", NO), ({"logprobs": True}, "logprobs", NO), ({"logit_bias": {"5": 1}}, "logit_bias", NO),
        ({"presence_penalty": 0.5}, "presence_penalty", NO), ({"tools": [{"type": "function"}]}, "tools", NO),
        ({"response_format": {"type": "json_object"}}, "response_format", NO), ({"nonsense": 1}, "nonsense", UNKNOWN),
        ({"temperature": 2.5}, "temperature", None), ({"temperature": "hot"}, "temperature", None),
        ({"top_p": -0.1}, "top_p", None), ({"max_tokens": 0}, "max_tokens", None), ({"seed": 2**70}, "seed", None),
        ({"max_tokens": 3, "max_completion_tokens": 3}, None, None), ({"stop": ["a"] * 5}, "stop", None),
        ({"stop": [""]}, "stop[0]", None), ({"stream_options": {"include_usage": True}}, None, None),
        ({"messages": None}, "messages", MISSING), ({"messages": []}, "messages", None),
        ({"messages": "Hello"}, "messages", None), ({"messages": ["Hello"]}, "messages[0]", None),
        (turn(role="user"), FIRST, MISSING), (turn(role="user", content=None), FIRST, MISSING),
        (turn(content="a"), "messages[0].role", MISSING), (content(), FIRST, None),
        (turn(**HELLO[0], tool_calls=[{}]), "messages[0].tool_calls", UNKNOWN),
        (content({"type": "text"}), f"{FIRST}[0]", None), (content({"type": "image_url"}), f"{FIRST}[0]", None),
        (content({"type": "text", "text": None}), f"{FIRST}[0]", None),
        (content({"type": "text", "text": "a"}, IMAGE | {"text": "b"}), f"{FIRST}[1]", None),
        (content({"type": "input_audio", "input_audio": {}}), f"{FIRST}[0].type", None),
        (content({"type": "video_url", "video_url": {}}), f"{FIRST}[0].type", None),
        ({"generation_config": '{"num_beams": 4}'}, "generation_config.num_beams", UNKNOWN),
        ({"generation_config": "{"}, "generation_config", None),
    ],
)  # fmt: skip
def test_unsupported_and_invalid_fields_are_refused_by_name(fields, param, code):
    with pytest.raises(Refusal, match=next(iter(fields))) as refused:
        request(**fields)
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, param, code)


@pytest.mark.parametrize(
    "body, reason",
    [
        (b"[" * 100_000, "recursion limit"), (b"", "EOF"), (b"7", "object with model and messages"),
        (b"[]", "object with model and messages"), (b"{}", "messages: Field required"),
        (HELLO_BODY.replace(b"Hello", b"\\ud800"), "hex escape"), (HELLO_BODY.replace(b"Hello", b"\xff"), "unicode"),
        (HELLO_BODY[:-1] + b', "temperature": NaN}', "finite"),
    ],
    ids=["deep", "empty", "number", "list", "object", "surrogate", "not UTF-8", "NaN"],
)  # fmt: skip
def test_a_body_that_is_not_a_request_is_refused(body, reason):
    with pytest.raises(Refusal, match=reason):
        read_request(body, ChatRequest)


def test_defaults_and_null_are_accepted_and_messages_take_the_processors_form():
    """Clients send fields with OpenAI's defaults, and `null` for absent ones."""
    fields = {"n": 1, "logprobs": False, "response_format": {"type": "text"}, "tools": [], "tool_choice": "none"}
    fields |= {"presence_penalty": 0.0, "frequency_penalty": 0, "user": "me", "stop": None, "logit_bias": None}
    answered = {"role": "assistant", "content": "a", "refusal": None, "tool_calls": None}
    assert request(**fields).sampling() == request().sampling() == {}
    assert request(messages=[*HELLO, answered, *HELLO]).messages[1].for_processor["content"][0]["text"] == "a"
    parts = [IMAGE, {"type": "text", "text": "What?"}, {"type": "image_url", "image_url": "b.png"}]
    (message,) = request(**content(*parts)).messages
    image = [{"type": "image", "image": name} for name in ("a.png", "b.png")]
    assert message.for_processor == {"role": "user", "content": [image[0], parts[1], image[1]]}
    assert request(stop="a").stop == ["a"] and request(stop=["a", "b"]).stop == ["a", "b"]


def test_the_clients_length_has_priority_over_that_of_transformers_chat():
    chat = {"generation_config": '{"max_new_tokens": 7, "transformers_version": "5.24.0"}'}
    given = [{}, chat, chat | {"max_tokens": 5}, {"max_completion_tokens": 6}]
    assert [request(**fields).max_new_tokens(512) for fields in given] == [512, 7, 5, 6]


@pytest.mark.parametrize(
    "fields, options",
    [
        ({}, {}), ({"temperature": 0}, {}), ({"temperature": 0, "top_p": 0.5}, {}), ({"temperature": 1e-30}, {}),
        ({"temperature": 0.5}, {"temperature": 0.5} | SAMPLED), ({"top_p": 0.5}, {"top_p": 0.5} | SAMPLED),
        ({"generation_config": '{"do_sample": true, "top_k": 5}'}, {"top_k": 5} | SAMPLED),
        ({"generation_config": '{"do_sample": false, "temperature": 0.7}'}, {}),
        ({"generation_config": '{"repetition_penalty": 1.5}'}, {"repetition_penalty": 1.5}),
        ({"generation_config": '{"do_sample": true, "temperature": 0.7}', "temperature": 0}, {}),
    ],
)  # fmt: skip
def test_answers_are_greedy_unless_the_request_says_otherwise(fields, options):
    assert request(**fields).sampling() == options
