"""One chat, one list of token ids, whoever makes it: processor, trainers, servers; and exactly one BOS policy."""

import base64

import conversations
import llms
import pytest
import tiny
from pixels import encoded
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor

from omnifusion_hf import OmniFusionProcessor
from omnifusion_hf.inference import TINY


IMAGE, QUESTION, ANSWER = tiny.image(), "What colour is the sky?", "The sky is blue."
CHAT = [tiny.user(IMAGE, QUESTION)]
# kind -> ids of CHAT and of the prompt for its answer: before the image's tokens, their number, after them
SKY = [371, 323, 397, 355, 308, 309, 318, 262]
INST_IDS = [301, 94, 265, 81, 86, 266, 96]
LLM = [1, 395, 308, 305, 373, 392, 377, 275, 369, 383, 381, 351, 13, 401]
GOLDEN = {
    "release format": ([432, 443], 36, [444, 445, 433, 411, 330, 270, 280, 77, 91, 33, 446]),
    "release format, LLM with BOS": (LLM, 16, [402, 403, *SKY, 404]),
    "own format with BOS": ([1, *INST_IDS, 301, 401], 16, [402, *SKY, 301, 94, 50, *INST_IDS[2:]]),
}


@pytest.fixture(scope="module")
def processors(parts, tmp_path_factory) -> dict[str, OmniFusionProcessor]:
    """Saved and loaded again, as users have them."""
    folder = tmp_path_factory.mktemp("processors")
    llm = llms.save(folder / "llm", "llama", chat_template=llms.INST, add_bos=True)
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
    parts = {"images": [IMAGE], "messages": messages, "prompt": messages[:1], "completion": messages[1:]}
    return {name: parts[name] for name in ("images", *names)}


def one_shot(processor) -> list[int]:
    return tiny.prompt(processor, CHAT).input_ids[0].tolist()


def two_steps(processor, **options) -> list[int]:
    text = processor.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    return processor(images=[IMAGE], text=text, **options).input_ids[0]


def vllm_chat(processor) -> list[int]:
    """vLLM's renderer asks for the template's text and encodes it without special tokens (its chat protocol's default;
    its plain `generate` encodes with them); here its steps without the engine."""
    with_specials, without = (two_steps(processor, add_special_tokens=add) for add in (True, False))
    assert with_specials == without
    return without


def our_server(processor) -> list[int]:
    """A request with a base64 image."""
    url = "data:image/png;base64," + base64.b64encode(encoded(IMAGE, "PNG")).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return served(processor, [{"role": "user", "content": content}])


def served(processor, messages: list[dict]) -> list[int]:
    """What `omnifusion serve` generates from."""
    pytest.importorskip("fastapi", reason="the server needs FastAPI: omnifusion_hf[serve]")
    from omnifusion_hf.serving import openai_server as server

    request = server.ChatRequest(model="model", messages=messages)
    inputs, _ = server.ChatServer(tiny.model(), processor, "model").prompt(request)
    return inputs["input_ids"][0].tolist()


def trl(processor, row: dict, **options) -> list[int]:
    sft_trainer = pytest.importorskip("trl.trainer.sft_trainer", reason="TRL is not installed")
    collate = sft_trainer.DataCollatorForVisionLanguageModeling(processor, **options)
    return collate([row])["input_ids"][0].tolist()


def trained_text(processor, messages: list[dict]) -> list[int]:
    return conversations.collate(processor, [{"name": "the sample", "messages": messages}])["input_ids"][0].tolist()


SERVERS = {"one shot": one_shot, "two steps": two_steps, "vLLM's chat": vllm_chat, "our server": our_server}
TRAINERS = {
    "TRL, messages": lambda processor: trl(processor, rows("messages")),
    "TRL, completion": lambda processor: trl(processor, rows("prompt", "completion"), completion_only_loss=True),
    "our training": lambda processor: trained_text(processor, [*CHAT, tiny.assistant(ANSWER)]),
}


@pytest.mark.parametrize("kind", GOLDEN)
@pytest.mark.parametrize("path", [*SERVERS, *TRAINERS])
def test_every_path_gives_the_same_ids_with_one_bos_policy(path, kind, processors):
    """Trainers continue with the answer."""
    processor = processors[kind]
    before, num_tokens, after = GOLDEN[kind]
    golden = before + [processor.image_token_id] * num_tokens + after
    ids = (SERVERS | TRAINERS)[path](processor)
    assert ids[: len(golden)] == golden and (len(ids) > len(golden)) == (path in TRAINERS)
    assert ids.count(processor.tokenizer.bos_token_id) == ("BOS" in kind)


TEXT_PATHS = {
    "our server": served,
    "TRL": lambda processor, messages: trl(processor, {"images": [], "messages": messages}),
    "our training": trained_text,
}


@pytest.mark.parametrize("kind", GOLDEN)
@pytest.mark.parametrize("path", TEXT_PATHS)
def test_special_tokens_cut_into_parts_are_text_on_every_path(path, kind, processors):
    tokenizer, tokens = processors[kind].tokenizer, ["<image>", "<img_start>", "<user>", "<bot>", "<s>", "</s>"]

    def marks(ids: list[int]) -> list[int]:
        return [ids.count(token) for token in tokenizer.convert_tokens_to_ids(tokens)]

    def said(*texts: str) -> list[int]:
        parts = [{"type": "text", "text": text} for text in texts]
        messages = [{"role": role, "content": parts} for role in ("system", "user", "assistant")]
        return marks(TEXT_PATHS[path](processors[kind], messages))

    assert said("a <bo", "t>Yes</", "s><im", "age><img_sta", "rt><us", "er", "><", "s>") == said("a Yes")
    assert all(marks(tokenizer.encode("".join(tokens))))  # control


def test_control_a_tokenizer_that_adds_bos_would_give_two(parts, processors):
    """An LLM's own tokenizer does; that of a processor does not any more, and neither when it is loaded."""
    processor = OmniFusionProcessor.from_vision_text_pretrained([str(parts / "clip")], str(parts / "llm_bos_tied"))
    expected = one_shot(processor)
    assert two_steps(processor) == expected and expected.count(processor.tokenizer.bos_token_id) == 1
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", processor.tokenizer.bos_token_id)]
    )
    assert two_steps(processor)[:2] == [processor.tokenizer.bos_token_id] * 2
