"""Asking a saved model about image files: what `omnifusion ask` and `make demo` do."""

import json
import os
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from .checking import check_weights
from .io import is_mistake, reason_of


TINY = Path(__file__).parent / "tiny"
EXAMPLES = TINY / "images" / "questions.json"


def placement(device: str | None = None) -> tuple[str, str]:
    """Device and dtype for answering: a GPU in the checkpoint's dtype, else the CPU in float32."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return device, "auto" if device != "cpu" else "float32"


@contextmanager
def told_if_missing(folder_or_hub_id: str | Path):
    """Loading fails with one line that names the folder, and that says first where there is none: transformers takes
    any such name for a Hub id. Damaged weights, tokenizers and configurations raise errors of many packages."""
    try:
        yield
    except Exception as error:
        if not (is_mistake(error) or isinstance(error, RuntimeError) or type(error) is Exception):
            raise
        if os.path.isdir(folder_or_hub_id):
            raise ValueError(f"cannot load {folder_or_hub_id}: {reason_of(error)}") from error
        absent = f"there is no folder {folder_or_hub_id}, and the Hub did not give it"
        raise ValueError(f"{absent}: {reason_of(error)}") from error


def load(folder_or_hub_id: str, device: str | None = None, **options):
    """(model, processor) for answering, where `placement` says.

    `options` go to the model's `from_pretrained`, such as `dtype` or `attn_implementation`. Raises `ValueError` where
    neither a folder nor a model of the Hub has that name, and for weights that are missing or no numbers.
    """
    device, dtype = placement(device)
    options = {"dtype": dtype} | options
    logging.disable_progress_bar()
    with told_if_missing(folder_or_hub_id):
        model, loading = AutoModelForImageTextToText.from_pretrained(
            folder_or_hub_id, device_map=device, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        processor = AutoProcessor.from_pretrained(folder_or_hub_id)
    check_weights(folder_or_hub_id, model, loading)
    return model.eval(), processor


def context_length(text_config) -> int | None:
    """The tokens that an LLM has room for, prompt and answer; None for one without a limit (BLOOM, MPT)."""
    return getattr(text_config, "max_position_embeddings", None)


def room_for_answer(inputs, context_length: int | None, max_new_tokens: int) -> int:
    """How many tokens the answer to a prompt may have, at most `max_new_tokens`.

    Raises `ValueError` for a prompt that fills the context: beyond it models answer, but nonsense.
    """
    num_tokens = inputs["input_ids"].shape[1]
    if context_length is None:
        return max_new_tokens
    if num_tokens >= context_length:
        raise ValueError(
            f"the prompt takes {num_tokens} tokens, and the model has room for {context_length}, its answer included; "
            "ask less at once, or with fewer or whole views."
        )
    return min(max_new_tokens, context_length - num_tokens)


def prompts(processor, conversations: list[list[dict]], regions: list[list] | None = None):
    """Model inputs for a batch of chats that end with a question; `regions`: a list per chat, of boxes per image."""
    return processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True} | ({"regions": regions} if regions else {}),
    )


def complete(model, inputs, processor, max_new_tokens: int = 128, **options) -> list[str]:
    """The model's answer to each prompt of a batch: greedy, if `options` of `generate` do not say otherwise."""
    options = {"do_sample": False, "max_new_tokens": max_new_tokens} | options
    ids = model.generate(**inputs.to(model.device), **options)
    return texts_of(processor, ids[:, inputs["input_ids"].shape[1] :])


def texts_of(processor, answers: torch.Tensor | list[list[int]]) -> list[str]:
    """Generated tokens of each answer as text."""
    return [text.strip() for text in processor.batch_decode(answers, skip_special_tokens=True)]


def cut(text: str, stops: Sequence[str]) -> str:
    """The answer before the first text that ends it."""
    return min((text.partition(stop)[0] for stop in stops), key=len, default=text).strip()


def answer(model, processor, images: list, question: str, max_new_tokens: int = 128) -> str:
    """The model's greedy answer to one question about 0, 1 or many images (paths, URLs or PIL images).

    Raises `ValueError` for a prompt that leaves no room in the LLM's context.
    """
    content = [{"type": "image", "image": str(p) if isinstance(p, Path) else p} for p in images]
    message = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
    inputs = prompts(processor, [[message]])
    room = room_for_answer(inputs, context_length(model.config.text_config), max_new_tokens)
    return complete(model, inputs, processor, room)[0]


def answer_examples(model, processor) -> list[dict]:
    """The bundled images' questions with the model's `answer` beside the `truth`, printed as they come."""
    examples = json.loads(EXAMPLES.read_text(encoding="utf-8"))
    width = max(len(example["question"]) for example in examples)
    for example in examples:
        example["answer"] = answer(model, processor, [EXAMPLES.parent / example["image"]], example["question"])
        mark = "right" if example["answer"] == example["truth"] else "WRONG"
        print(f"{example['image']:<14} {example['question']:<{width}}  {mark}  {example['answer']!r}", end="")
        print("" if mark == "right" else f" (truth: {example['truth']!r})", flush=True)
    return examples
