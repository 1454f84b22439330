"""Answers of a saved model to questions about images, as in `omnifusion ask` and `make demo`."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
from transformers.utils import logging

from .checking import check_weights
from .io import friendly_load_errors
from .model.processing_omnifusion import TokenCount


TINY = Path(__file__).parent / "tiny"
EXAMPLES = TINY / "images" / "questions.json"


def default_device_and_dtype(device: str | None = None) -> tuple[str, str]:
    """A GPU with the checkpoint's dtype, else the CPU with float32."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return device, "float32" if device.startswith("cpu") else "auto"


def load(folder_or_hub_id: str, device: str | None = None, quantization: str | None = None, **options):
    """(model, processor) in eval mode, by default as [`default_device_and_dtype`] says.

    Raises `ValueError` if there is neither a folder nor a Hub model of that name, for weights that are missing or not
    finite, and for a device or quantisation that this computer does not have.

    Args:
        device: one of torch, or `"auto"`, which spreads the model over all GPUs.
        quantization: `"4bit"` or `"8bit"`, of the LLM by bitsandbytes.
        options: of the model's `from_pretrained`, such as `dtype` or `attn_implementation`; None is the default.
    """
    device, dtype = default_device_and_dtype(device)
    options = {"dtype": dtype} | {name: value for name, value in options.items() if value is not None}
    check_device(device)
    if quantization:
        options["quantization_config"] = bitsandbytes_config(quantization, device, options["dtype"])
    logging.disable_progress_bar()
    with friendly_load_errors(folder_or_hub_id):
        model, loading = AutoModelForImageTextToText.from_pretrained(
            folder_or_hub_id, device_map=device, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        processor = AutoProcessor.from_pretrained(folder_or_hub_id)
    check_weights(folder_or_hub_id, model, loading)
    if quantization and not getattr(model, f"is_loaded_in_{quantization}", False):
        raise ValueError(f"{folder_or_hub_id} is stored with another quantisation than {quantization}; omit it.")
    return model.eval(), processor


def check_device(device: str):
    """Raises `ValueError` for a device that torch does not have here."""
    try:
        torch.empty(0, device="cpu" if device == "auto" else device)
    except (RuntimeError, AssertionError):  # AssertionError: torch was built without CUDA
        raise ValueError(f"torch has no device {device} here; use cpu, cuda, cuda:1, mps, … or auto.") from None


def bitsandbytes_config(quantization: str, device: str, dtype: str) -> BitsAndBytesConfig:
    """Settings of 4 or 8 bits. Raises `ValueError` for others, and without a bitsandbytes that knows the device."""
    if quantization not in ("4bit", "8bit"):
        raise ValueError(f"quantization is 4bit or 8bit, got {quantization}.")
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"{quantization} needs bitsandbytes: pip install 'omnifusion_hf[quantization]'.")
    from bitsandbytes import supported_torch_devices

    if device != "auto" and (kind := torch.device(device).type) not in supported_torch_devices:
        known = ", ".join(sorted(supported_torch_devices))
        raise ValueError(f"bitsandbytes has no {quantization} for the device {kind}; it supports {known}.")
    if quantization == "8bit":
        getLogger("bitsandbytes").setLevel("ERROR")  # it says for each layer and token that it computes in float16
        return BitsAndBytesConfig(load_in_8bit=True)
    computed = "bfloat16" if dtype == "auto" else dtype
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computed)


def context_length(text_config) -> int | None:
    """Most tokens of prompt and answer together; None for an LLM without a limit (BLOOM, MPT)."""
    return getattr(text_config, "max_position_embeddings", None)


def context_warning(count: TokenCount) -> str:
    """A line if images leave the context no room for a question, else an empty text."""
    if count.share is None or count.share < 1:
        return ""
    fewer_views = "view_strategy whole, " if max(count.views) > 1 else ""
    return (
        f"warning: this does not fit: {count.total} tokens and a question, in a context of {count.context_length}; "
        f"use {fewer_views}fewer tokens per view (omnifusion build: --image-size, or --projector attention with "
        "--queries), or an LLM with a longer context.\n"
    )


def max_new_tokens_within_context(inputs, context_length: int | None, max_new_tokens: int) -> int:
    """`max_new_tokens`, or fewer if the context has no room for them after the prompt.

    Raises `ValueError` for a prompt that fills the context: beyond it models generate nonsense without an error.
    """
    num_tokens = inputs["input_ids"].shape[1]
    if context_length is None:
        return max_new_tokens
    if num_tokens >= context_length:
        raise ValueError(
            f"the prompt takes {num_tokens} tokens, but the model's context has {context_length}, answer included; "
            "use a shorter prompt, fewer images, or view_strategy='whole'."
        )
    return min(max_new_tokens, context_length - num_tokens)


def prompts(processor, conversations: list[list[dict]], regions: list[list] | None = None):
    """Model inputs for a batch of chats that end with a question.

    Args:
        regions: per chat, a list per image of boxes (left, top, right, bottom) in pixels; any list may be empty.
    """
    return processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True} | ({"regions": regions} if any(map(any, regions or [])) else {}),
    )


def generate_text(model, inputs, processor, max_new_tokens: int = 128, **options) -> list[str]:
    """The answer to each prompt of a batch, by greedy search unless `options` of `generate` change that."""
    options = {"do_sample": False, "max_new_tokens": max_new_tokens} | options
    ids = model.generate(**inputs.to(model.device), **options)
    return texts_of(processor, ids[:, inputs["input_ids"].shape[1] :])


def texts_of(processor, answers: torch.Tensor | list[list[int]]) -> list[str]:
    """The text of each answer, from its token ids."""
    return [text.strip() for text in processor.batch_decode(answers, skip_special_tokens=True)]


def cut(text: str, stops: Sequence[str]) -> str:
    """The answer up to the first of the texts in `stops`."""
    return min((text.partition(stop)[0] for stop in stops), key=len, default=text).strip()


def answer_question(model, processor, images: list, question: str, max_new_tokens: int = 128) -> str:
    """The greedy answer to one question about any number of images (paths, URLs or PIL images).

    Raises `ValueError` for a prompt that fills the LLM's context.
    """
    content = [{"type": "image", "image": str(p) if isinstance(p, Path) else p} for p in images]
    message = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
    inputs = prompts(processor, [[message]])
    limit = context_length(model.config.text_config)
    return generate_text(model, inputs, processor, max_new_tokens_within_context(inputs, limit, max_new_tokens))[0]


def answer_examples(model, processor) -> list[dict]:
    """Answers the questions about the bundled images, printing each; returns them with `answer` and `truth`."""
    examples = json.loads(EXAMPLES.read_text(encoding="utf-8"))
    width = max(len(example["question"]) for example in examples)
    for example in examples:
        image = EXAMPLES.parent / example["image"]
        example["answer"] = answer_question(model, processor, [image], example["question"])
        mark = "right" if example["answer"] == example["truth"] else "WRONG"
        print(f"{example['image']:<14} {example['question']:<{width}}  {mark}  {example['answer']!r}", end="")
        print("" if mark == "right" else f" (truth: {example['truth']!r})", flush=True)
    return examples
