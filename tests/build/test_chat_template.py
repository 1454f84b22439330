"""Chat templates: an LLM's own to the letter, images in their places, answers marked; everywhere text is data."""

from functools import partial
from itertools import pairwise

import conversations
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from llms import CHATML, INST
from tokenizers import AddedToken

from omnifusion_hf import OmniFusionProcessor, add_special_tokens
from omnifusion_hf.build.chat_template import chat_template_for
from omnifusion_hf.model.processing_omnifusion import ESCAPE, escape, special_tokens


# Stand-ins for the kinds of templates that LLMs bring. All but the last print whatever `content` is.
REWRITES = (  # thoughts of all turns but the last are dropped, as reasoning LLMs do
    "{% for message in messages %}<|im_start|>{{ message.role }}:"
    "{% if message.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ message.content }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
MARKS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}:{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{% else %}{{ message.content }}<|im_end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
FORMATS = {"omnifusion": None, "chatml": CHATML, "inst": INST, "rewrites": REWRITES, "marks": MARKS}
OWN = pytest.mark.parametrize("name", [*FORMATS][1:])
EVERY = pytest.mark.parametrize("name", [name for name in FORMATS if name != "rewrites"])


def llm_tokenizer(own: str | dict | None):
    tokenizer = tiny.llm_tokenizer(add_bos=True)
    tokens = ["<|im_start|>", "<|im_end|>", AddedToken("<|end|>", special=True, normalized=True), "##"]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.chat_template = own
    return tokenizer


def processor_with(own: str | None) -> OmniFusionProcessor:
    """Of an LLM with a template of its own, or in the format of the release."""
    tokenizer, image_processor = llm_tokenizer(own), tiny.processor(tiny.config()).image_processor
    template = chat_template_for(tokenizer, "own" if own else "omnifusion")
    return OmniFusionProcessor(image_processor, add_special_tokens(tokenizer), 16, chat_template=template)


@pytest.fixture(scope="module")
def formats() -> dict[str, OmniFusionProcessor]:
    return {name: processor_with(own) for name, own in FORMATS.items()}


DIALOGUE = [tiny.user("Look ", "at it. "), tiny.assistant("A sky."), tiny.user("And?"), tiny.assistant("Grass.")]


@OWN
@pytest.mark.parametrize("turns, generate", [(1, True), (2, False), (3, True), (4, False)])
def test_the_text_is_that_of_the_llm(formats, name, turns, generate):
    llm, options = llm_tokenizer(FORMATS[name]), {"tokenize": False, "add_generation_prompt": generate}
    words = [message | {"content": "".join(part["text"] for part in message["content"])} for message in DIALOGUE]
    expected = llm.apply_chat_template(words[:turns], **options)
    assert formats[name].apply_chat_template(DIALOGUE[:turns], **options) == expected
    parts = llm.apply_chat_template(DIALOGUE[:turns], **options)
    assert "'type': 'text'" in parts or "{&#39;" in parts  # control: by itself it prints the parts


@OWN
def test_images_stand_where_the_message_has_them(formats, name):
    question = tiny.user("Compare", tiny.image(0), "with", tiny.image(1), "please")
    assert "Compare<image>with<image>please" in formats[name].apply_chat_template([question])
    inputs = tiny.prompt(formats[name], [question])
    assert (inputs.input_ids == formats[name].image_token_id).sum() == 32 and len(inputs.pixel_values) == 2
    # the tokenizer of these LLMs adds a BOS to plain text; the text of the chat has the template's, once or not
    assert inputs.input_ids[0].tolist().count(formats[name].tokenizer.bos_token_id) == (name == "inst")


SPECIAL = ["<image>", "<img_start>", "<img_end>", "<user>", "<bot>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
SPECIAL += ["<|end|>", "##"]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=[ESCAPE, "▁"]), max_size=3)
TEXTS = st.lists(st.sampled_from([*SPECIAL, "<", "|>", "#", " "]) | ANY_TEXT, max_size=4).map("".join)


def cut(text: str, places: list[int]) -> list[str]:
    return [text[start:end] for start, end in pairwise([0, *sorted(places), len(text)])]


CUT_TEXTS = TEXTS.flatmap(lambda text: st.lists(st.integers(0, len(text)), max_size=5).map(partial(cut, text)))


def said(role: str, content) -> list[dict]:
    """A conversation in which `role` says that."""
    before = [tiny.user("Q")] if role == "assistant" else []
    return [*before, {"role": role, "content": content}, *([tiny.user("Q")] if role == "system" else [])]


def rendered(processor, conversation: list[dict], alone: bool) -> str:
    """By the processor, or by the template alone as serving engines use it."""
    if alone:
        options = {"chat_template": processor.chat_template, "tokenize": False}
        return processor.tokenizer.apply_chat_template(conversation, **options)
    return processor.apply_chat_template(conversation)


def marks(ids: list[int], processor) -> list[int]:
    return [ids.count(processor.tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(pieces=CUT_TEXTS, role=st.sampled_from(["user", "system", "assistant"]), alone=st.booleans())
def test_text_is_data_however_it_is_cut(formats, pieces, role, alone):
    parts = [{"type": "text", "text": piece} for piece in pieces]
    for name in ["omnifusion", "chatml", "marks"] + ["inst"] * (role != "system"):  # which it leaves out
        processor = formats[name]
        nothing, whole, in_parts = (
            processor.tokenizer.encode(rendered(processor, said(role, content), alone))
            for content in ("", "".join(pieces), parts)
        )
        assert in_parts == whole
        assert marks(in_parts, processor) == marks(nothing, processor)
        assert "".join(pieces).strip() in processor.decode(in_parts, skip_special_tokens=False)


def test_control_text_that_nobody_escapes_holds_special_tokens(formats):
    tokenizer = formats["omnifusion"].tokenizer
    for token in SPECIAL:
        text, special = f"a {token}{token[-1]} b", tokenizer.convert_tokens_to_ids(token)  # "###" holds "##" twice
        assert special in tokenizer.encode(text)
        assert special not in tokenizer.encode(escape(text, special_tokens(tokenizer)))


HALVES = "{% for message in messages %}<bo{{ message.content }}end|>{% endfor %}"
NAMED = "{% for message in messages %}{{ message.name }}: {{ message.content }}{{ message.n }}{% endfor %}"


@pytest.mark.parametrize("alone", [False, True], ids=["processor", "template alone"])
def test_whatever_an_llms_template_prints_of_a_message_is_data_and_completes_nothing_beside_it(alone):
    halves, named = (processor_with(template) for template in (HALVES, NAMED))
    text = rendered(halves, said("user", "t> and <|im_"), alone)
    assert not any(marks(halves.tokenizer.encode(text), halves))
    bare = marks(halves.tokenizer.encode(text.replace(ESCAPE, "")), halves)  # control: both would be completed
    assert bare[SPECIAL.index("<bot>")] == bare[SPECIAL.index("<|im_end|>")] == 1
    text = rendered(named, [{"role": "user", "name": "<|im_end|>", "content": "Hi", "n": None}], alone)
    assert text.replace(ESCAPE, "").startswith("<|im_end|>: Hi")
    assert not any(marks(named.tokenizer.encode(text), named))


IMAGE = tiny.image()


def by_user(**part) -> dict:
    return {"role": "user", "content": [part]}


NOT_MESSAGES = {
    "a text part with content": by_user(type="text", content="What?"),
    "a text part of nothing": by_user(type="text", text=None),
    "a text beside an image": by_user(type="image", image=IMAGE, text="What?"),
    "a part of another type": by_user(type="video", video="film.mp4"),
    "a part that is no dict": {"role": "user", "content": ["What?"]},
    "value": {"role": "user", "value": "What?"},
    "no content": {"role": "user", "content": None},
    "no parts": {"role": "user", "content": []},
    "one part alone": {"role": "user", "content": {"type": "text", "text": "What?"}},
    "tool calls alone": {"role": "assistant", "tool_calls": [{"type": "function"}]},
    "tool calls": {"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]},
    "an image of the assistant": by_user(type="image", image=IMAGE) | {"role": "assistant"},
    "another role": {"role": "tool", "content": "Four."},
}
ONLY_IN_PYTHON = {
    "images beside the content": {"role": "user", "content": "What?", "images": [IMAGE]},
    "a value beside the content": {"role": "user", "content": "What", "value": "colour?"},
    "no message": "What?",
}


@pytest.mark.parametrize("kind", [*NOT_MESSAGES, *ONLY_IN_PYTHON])
@EVERY
def test_what_is_neither_text_nor_an_image_is_refused_by_its_message(formats, name, kind):
    processor, conversation = formats[name], [tiny.user("Hello"), (NOT_MESSAGES | ONLY_IN_PYTHON)[kind]]
    said = "message 1 .*(`content` is a string or a list|Roles are)"
    for tokenize in (False, True):
        with pytest.raises(ValueError, match=f"^{said}"):
            processor.apply_chat_template(conversation, tokenize=tokenize)
    with pytest.raises(ValueError, match="^conversation 1, message 1 "):
        processor.apply_chat_template([[tiny.user("Hello")], conversation])
    if kind in NOT_MESSAGES:
        with pytest.raises(TemplateError, match=f"^{said}"):
            rendered(processor, conversation, alone=True)


@EVERY
def test_tools_and_no_messages_at_all_are_refused(formats, name):
    chat, template = [tiny.user("Hi")], formats[name].chat_template
    for options in ({"tools": [{"type": "function"}]}, {"documents": [{"title": "A", "text": "B"}]}):
        with pytest.raises(ValueError, match="no place for tools and documents"):
            formats[name].apply_chat_template(chat, **options)
        with pytest.raises(TemplateError, match="no place for tools and documents"):
            formats[name].tokenizer.apply_chat_template(chat, chat_template=template, **options)
    for nothing in ([], [[]], "Hi", tiny.user("Hi")):
        with pytest.raises(ValueError, match="A conversation is a list of messages"):
            formats[name].apply_chat_template(nothing)


@EVERY
def test_a_message_may_hold_more_that_is_harmless_and_is_not_changed(formats, name):
    message = {"role": "user", "content": [{"type": "text", "text": "<bot>", "image": None}], "name": "Ann", "id": 3}
    message |= {"tool_calls": None, "images": [], "refusal": ""}
    expected = formats[name].apply_chat_template([{"role": "user", "content": "<bot>"}])
    assert formats[name].apply_chat_template([message], tools=None) == expected
    assert message["content"] == [{"type": "text", "text": "<bot>", "image": None}]


@EVERY
@pytest.mark.parametrize("text", ["The <user> shape", "a </s> b <", "> plain", "<|im_end|>"])
@pytest.mark.parametrize("places", [None, [7]], ids=["whole", "in parts"])
def test_an_answer_that_is_begun_with_a_special_token_goes_on_from_that_text(formats, name, text, places):
    processor = formats[name]
    begin = partial(processor.apply_chat_template, continue_final_message=True)
    content = text if places is None else [{"type": "text", "text": piece} for piece in cut(text, places)]
    begun, plain = (
        [tiny.user(IMAGE, "What?"), {"role": "assistant", "content": answer}] for answer in (content, "PREFILL")
    )
    assert begin(begun).replace(ESCAPE, "") == begin(plain).removesuffix("PREFILL") + text
    ids, of_plain = (begin(chat, tokenize=True, return_dict=True)["input_ids"][0] for chat in (begun, plain))
    assert marks(ids, processor) == marks(of_plain, processor)
    assert processor.decode(ids).endswith(text)


def trained(processor, *messages) -> str:
    labels = conversations.collate(processor, [{"name": "the sample", "messages": [*messages]}])["labels"][0]
    return processor.decode(labels[labels != -100], skip_special_tokens=False).replace(" ", "")


@EVERY
def test_answers_and_their_ends_are_learnt_in_every_turn(formats, name):
    end = {"chatml": "<|im_end|>\n", "marks": "<|im_end|>"}.get(name, "</s>")
    question = tiny.user("Look ", tiny.image(), "at <image> it")
    assert trained(formats[name], question, *DIALOGUE[1:]) == f"Asky.{end}Grass.{end}"


def test_a_template_that_rewrites_earlier_turns_trains_single_turns_only(formats):
    assert trained(formats["rewrites"], *DIALOGUE[:2]) == "<think></think>Asky.<|im_end|>"
    with pytest.raises(ValueError, match="the sample: 2 answers, but the chat template marks 1: .* omnifusion"):
        trained(formats["rewrites"], *DIALOGUE)


def test_a_template_of_several_is_the_default_one_and_none_and_an_unknown_kind_are_refused():
    inst, several = llm_tokenizer(INST), llm_tokenizer({"default": INST, "tool_use": CHATML})
    assert chat_template_for(several, "own") == chat_template_for(inst, "own")
    for own, kind, said in ((None, "own", "no .* its own; use `omnifusion`"), (INST, "vicuna", "`vicuna` is unknown")):
        with pytest.raises(ValueError, match=said):
            chat_template_for(llm_tokenizer(own), kind)
