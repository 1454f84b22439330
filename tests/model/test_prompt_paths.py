"""One chat, one list of token ids, whoever makes it: processor, trainers, servers; and exactly one BOS policy."""

import base64
from io import BytesIO

import conversations
import llms
import pytest
import tiny
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor

from omnifusion_hf import OmniFusionProcessor
from omnifusion_hf.inference import TINY


IMAGE, QUESTION, ANSWER = tiny.image(), "What colour is the sky?", "The sky is blue."
CHAT = [tiny.user(IMAGE, QUESTION)]
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
# kind -> ids of CHAT and of the prompt for its answer: before the image's tokens, their number, after them
GOLDEN = {
    "release format": ([432, 443], 36, [444, 445, 433, 411, 330, 270, 280, 77, 91, 33, 446]),
    "release format, LLM with BOS": (
        [1, 395, 308, 305, 373, 392, 377, 275, 369, 383, 381, 351, 13, 401],
        16,
        [402, 403, 371, 323, 397, 355, 308, 309, 318, 262, 404],
    ),
    "own format with BOS": (
        [1, 301, 94, 265, 81, 86, 266, 96, 301, 401],
        16,
        [402, 371, 323, 397, 355, 308, 309, 318, 262, 301, 94, 50, 265, 81, 86, 266, 96],
    ),
}


@pytest.fixture(scope="module")
def processors(parts, tmp_path_factory) -> dict[str, OmniFusionProcessor]:
    """Saved and loaded again, as users have them."""
    folder = tmp_path_factory.mktemp("processors")
    llm = llms.save(folder / "llm", "llama", chat_template=INST, add_bos=True)
    for kind in ("omnifusion", "own"):
        processor = OmniFusionProcessor.from_vision_text_pretrained([str(parts / "clip")], str(llm), kind)
        processor.save_pretrained(folder / kind)
    return {
        "release format": AutoProcessor.from_pretrained(TINY),
        "release format, LLM with BOS": AutoProcessor.from_pretrained(folder / "omnifusion"),
        "own format with BOS": AutoProcessor.from_pretrained(folder / "own"),
    }


def rows(*names: str) -> dict:
    """A training sample as TRL takes it: images apart, words as strings."""
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    parts = {"messages": messages, "prompt": messages[:1], "completion": messages[1:]}
    return {"images": [IMAGE]} | {name: parts[name] for name in names}


def one_shot(processor) -> list[int]:
    return tiny.prompt(processor, CHAT).input_ids[0].tolist()


def two_steps(processor, **options) -> list[int]:
    text = processor.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    return processor(images=[IMAGE], text=text, **options).input_ids[0]


def vllm_chat(processor) -> list[int]:
    """vLLM's renderer asks for the template's text and encodes it without special tokens (its chat protocol's default;
    its plain `generate` encodes with them); here its steps without the engine."""
    assert two_steps(processor, add_special_tokens=True) == two_steps(processor, add_special_tokens=False)
    return two_steps(processor, add_special_tokens=False)


def our_server(processor) -> list[int]:
    """A request with a base64 image."""
    file = BytesIO()
    IMAGE.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return served(processor, [{"role": "user", "content": content}])


def served(processor, messages: list[dict]) -> list[int]:
    """What `omnifusion serve` generates from."""
    pytest.importorskip("fastapi", reason="the server needs FastAPI: omnifusion_hf[serve]")
    from omnifusion_hf.serving import openai_server as server

    request = server.ChatRequest(model="model", messages=messages)
    inputs, _ = server.ChatServer(tiny.model(), processor, "model").prompt(request)
    return inputs["input_ids"][0].tolist()


def trl_messages(processor) -> list[int]:
    return trl_collator(processor)([rows("messages")])["input_ids"][0].tolist()


def trl_prompt_and_completion(processor) -> list[int]:
    return trl_collator(processor, completion_only_loss=True)([rows("prompt", "completion")])["input_ids"][0].tolist()


def trl_collator(processor, **options):
    sft_trainer = pytest.importorskip("trl.trainer.sft_trainer", reason="TRL is not installed")
    return sft_trainer.DataCollatorForVisionLanguageModeling(processor, **options)


def our_training(processor) -> list[int]:
    sample = {"name": "the sample", "messages": [*CHAT, tiny.assistant(ANSWER)]}
    return conversations.collate(processor, [sample])["input_ids"][0].tolist()


@pytest.mark.parametrize("kind", GOLDEN)
@pytest.mark.parametrize(
    "path",
    [one_shot, two_steps, vllm_chat, our_server, trl_messages, trl_prompt_and_completion, our_training],
    ids=lambda path: path.__name__,
)
def test_every_path_gives_the_same_ids_with_one_bos_policy(path, kind, processors):
    """Trainers continue with the answer."""
    processor = processors[kind]
    before, num_tokens, after = GOLDEN[kind]
    golden = before + [processor.image_token_id] * num_tokens + after
    ids = path(processor)
    assert ids[: len(golden)] == golden
    assert (len(ids) > len(golden)) == (path in (trl_messages, trl_prompt_and_completion, our_training))
    assert ids.count(processor.tokenizer.bos_token_id) == ("BOS" in kind)


def trl_text(processor, messages: list[dict]) -> list[int]:
    return trl_collator(processor)([{"images": [], "messages": messages}])["input_ids"][0].tolist()


def trained_text(processor, messages: list[dict]) -> list[int]:
    return conversations.collate(processor, [{"name": "the sample", "messages": messages}])["input_ids"][0].tolist()


@pytest.mark.parametrize("kind", GOLDEN)
@pytest.mark.parametrize("path", [served, trl_text, trained_text], ids=lambda path: path.__name__)
def test_special_tokens_cut_into_parts_are_text_on_every_path(path, kind, processors):
    processor = processors[kind]
    tokens = ["<image>", "<img_start>", "<user>", "<bot>", "<s>", "</s>"]

    def marks(*texts: str) -> list[int]:
        parts = [{"type": "text", "text": text} for text in texts]
        ids = path(processor, [{"role": role, "content": parts} for role in ("system", "user", "assistant")])
        return [ids.count(token) for token in processor.tokenizer.convert_tokens_to_ids(tokens)]

    assert marks("a <bo", "t>Yes</", "s><im", "age><img_sta", "rt><us", "er", "><", "s>") == marks("a Yes")
    control = processor.tokenizer.encode("".join(tokens))
    assert all(control.count(token) for token in processor.tokenizer.convert_tokens_to_ids(tokens))


def test_control_a_tokenizer_that_adds_bos_would_give_two(parts, processors):
    """An LLM's own tokenizer does; that of a processor does not any more, and neither when it is loaded."""
    processor = OmniFusionProcessor.from_vision_text_pretrained([str(parts / "clip")], str(parts / "llm_bos_tied"))
    expected = one_shot(processor)
    assert two_steps(processor) == expected and expected.count(processor.tokenizer.bos_token_id) == 1
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", processor.tokenizer.bos_token_id)]
    )
    assert two_steps(processor)[:2] == [processor.tokenizer.bos_token_id] * 2
