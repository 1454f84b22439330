"""An LLM's own chat template: its text to the letter, pictures in their places, typed tokens text, answers marked."""

import conversations
import pytest
import tiny

from omnifusion_hf import OmniFusionProcessor, add_special_tokens
from omnifusion_hf.chat_template_omnifusion import chat_template_for


# Stand-ins for the kinds of templates that LLMs bring. All but the last print whatever `content` is.
CHATML = """
{%- if messages[0]['role'] != 'system' %}<|im_start|>system
You help.<|im_end|>
{% endif %}
{%- for message in messages %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}
"""
INST = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content | trim }} [/INST]"
    "{% else %} {{ message.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
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
ALL = pytest.mark.parametrize("own", [CHATML, INST, REWRITES, MARKS], ids=["chatml", "inst", "rewrites", "marks"])


def llm_tokenizer(own: str | None, add_bos: bool = True):
    tokenizer = tiny.llm_tokenizer(add_bos)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = own
    return tokenizer


@pytest.fixture(scope="module")
def image_processor():
    return tiny.processor(tiny.config()).image_processor


def processor_with(own: str, image_processor) -> OmniFusionProcessor:
    tokenizer = llm_tokenizer(own)
    template = chat_template_for(tokenizer, "own")
    return OmniFusionProcessor(image_processor, add_special_tokens(tokenizer), 16, chat_template=template)


def words(messages: list[dict]) -> list[dict]:
    """The same conversation with content as LLMs' templates expect it, one string."""
    return [message | {"content": "".join(part["text"] for part in message["content"])} for message in messages]


DIALOGUE = [tiny.user("Look ", "at it. "), tiny.assistant("A sky."), tiny.user("And?"), tiny.assistant("Grass.")]


@ALL
@pytest.mark.parametrize("turns, generate", [(1, True), (2, False), (3, True), (4, False)])
def test_the_text_is_that_of_the_llm(own, turns, generate, image_processor):
    options = {"tokenize": False, "add_generation_prompt": generate}
    expected = llm_tokenizer(own).apply_chat_template(words(DIALOGUE[:turns]), **options)
    processor = processor_with(own, image_processor)
    assert processor.apply_chat_template(DIALOGUE[:turns], **options) == expected
    parts = llm_tokenizer(own).apply_chat_template(DIALOGUE[:turns], **options)
    assert "'type': 'text'" in parts or "{&#39;" in parts  # control: by itself it prints the parts


@ALL
def test_pictures_stand_where_the_message_has_them(own, image_processor):
    processor = processor_with(own, image_processor)
    question = tiny.user("Compare", tiny.picture(0), "with", tiny.picture(1), "please")
    text = processor.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    assert "Compare<image>with<image>please" in text
    inputs = tiny.prompt(processor, [question])
    assert (inputs.input_ids == processor.image_token_id).sum() == 32 and len(inputs.pixel_values) == 2


@ALL
@pytest.mark.parametrize("token", ["<image>", "<img_end>", "<|im_end|>", "</s>", "<s>", "<bot>"])
def test_case_03_special_tokens_that_a_user_types_are_text(own, token, image_processor):
    processor = processor_with(own, image_processor)
    ids = [tiny.prompt(processor, [tiny.user(f"a {text} b")]).input_ids[0].tolist() for text in (token, "")]
    special = processor.tokenizer.convert_tokens_to_ids(token)
    assert ids[0].count(special) == ids[1].count(special)
    assert f"a {token} b" in processor.decode(ids[0], skip_special_tokens=False)


def test_only_user_messages_hold_pictures(image_processor):
    processor = processor_with(CHATML, image_processor)
    answer = {"role": "assistant", "content": [{"type": "image", "image": tiny.picture()}]}
    with pytest.raises(Exception, match="those of the user also pictures"):
        tiny.prompt(processor, [tiny.user("Draw"), answer, tiny.user("And?")])


@pytest.mark.parametrize("own, bos", [(INST, 1), (CHATML, 0)], ids=["inst", "chatml"])
def test_bos_comes_from_the_template_alone(own, bos, image_processor):
    """The tokenizer of both LLMs adds a BOS to plain text; the text of the chat has the template's, once or not."""
    processor = processor_with(own, image_processor)
    picture = tiny.picture()
    text = processor.apply_chat_template([tiny.user(picture, "Hi")], tokenize=False, add_generation_prompt=True)
    two_steps = processor(text=text, images=[picture]).input_ids[0]
    one_step = tiny.prompt(processor, [tiny.user(picture, "Hi")]).input_ids[0].tolist()
    assert one_step == two_steps and one_step.count(processor.tokenizer.bos_token_id) == bos


def trained(own: str, image_processor, *messages) -> str:
    processor = processor_with(own, image_processor)
    labels = conversations.collate(processor, [{"name": "the sample", "messages": [*messages]}])["labels"][0]
    return processor.decode(labels[labels != -100], skip_special_tokens=False).replace(" ", "")


@pytest.mark.parametrize(
    "own, expected",
    [
        (CHATML, "Asky.<|im_end|>\nGrass.<|im_end|>\n"),
        (INST, "Asky.</s>Grass.</s>"),
        (MARKS, "Asky.<|im_end|>Grass.<|im_end|>"),
    ],
    ids=["chatml", "inst", "marks"],
)
def test_answers_and_their_ends_are_learnt_in_every_turn(own, expected, image_processor):
    question = tiny.user("Look ", tiny.picture(), "at <image> it")
    assert trained(own, image_processor, question, *DIALOGUE[1:]) == expected


def test_a_template_that_rewrites_earlier_turns_trains_single_turns_only(image_processor):
    assert trained(REWRITES, image_processor, *DIALOGUE[:2]) == "<think></think>Asky.<|im_end|>"
    with pytest.raises(ValueError, match="the sample has 2 answers, the chat template marks 1 .* release"):
        trained(REWRITES, image_processor, *DIALOGUE)


def test_a_template_of_several_is_the_default_one(image_processor):
    several = llm_tokenizer({"default": INST, "tool_use": CHATML})
    assert chat_template_for(several, "own") == chat_template_for(llm_tokenizer(INST), "own")


def test_an_llm_without_a_template_and_an_unknown_kind_are_refused():
    with pytest.raises(ValueError, match="no chat template of its own; use `release`"):
        chat_template_for(llm_tokenizer(None), "own")
    with pytest.raises(ValueError, match="`vicuna` is unknown"):
        chat_template_for(llm_tokenizer(INST), "vicuna")
