# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The facts on which a score depends: versions, and hashes of the model, the processor and every prompt's tokens.

Two runs with different scores and equal hashes had the same inputs. Another prompt hash means other prompts (a second
BOS, another template, other documents); another processor hash means other settings of images or text.
"""

import json
from hashlib import sha256
from importlib.metadata import version

from accelerate.utils import gather_object

from .._compat import attn_implementation
from ..hashing import weights_hash
from ..inference import context_length


PACKAGES = ("omnifusion_hf", "transformers", "torch", "lmms-eval")


def model_facts(model, processor) -> dict[str, str]:
    """Facts that differ between two models that were saved under the same name."""
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "model_sha256": model_hash(model),
        "processor_sha256": processor_hash(processor),
    }


def model_hash(model) -> str:
    """SHA-256 of the configuration, the settings of `generate` and every weight."""
    configs = [model.config.to_dict(), model.generation_config.to_dict()]
    facts = [config | {"transformers_version": None} for config in configs]
    return sha256(json.dumps([*facts, weights_hash(model)], sort_keys=True, default=str).encode()).hexdigest()


def processor_hash(processor) -> str:
    """SHA-256 of all settings that turn images and text into model inputs."""
    settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
    parts = (settings, processor.chat_template, processor.tokenizer.backend_tokenizer.to_str())
    return sha256("\0".join(parts).encode()).hexdigest()


class RunRecord:
    """Collects the facts of a run while prompts are made: call `add` for each prompt, then `of_tasks`."""

    def __init__(self, pretrained: str, model, processor, batch_size: int):
        self.facts = {
            "model": pretrained,
            "versions": {package: version(package) for package in PACKAGES},
            "dtype": str(model.dtype).removeprefix("torch."),
            "attn_implementation": attn_implementation(model.config),
            "batch_size": batch_size,
            "processor_sha256": processor_hash(processor),
            "context_length": context_length(model.config.text_config),
        }
        self.prompts = {}  # task -> doc_id -> (hash, length)

    def add(self, task: str, doc_id: int, input_ids: list[int]):
        """Records a prompt's tokens, padding excluded."""
        self.prompts.setdefault(task, {})[doc_id] = (sha256(repr(input_ids).encode()).hexdigest(), len(input_ids))

    def of_tasks(self) -> dict[str, dict]:
        """The facts by task, over all processes. Every process must call this."""
        tasks = {}
        for part in gather_object([self.prompts]):
            for task, prompts in part.items():
                tasks.setdefault(task, {}).update(prompts)
        return {task: self.facts | _of_prompts(prompts) for task, prompts in tasks.items()}


def _of_prompts(prompts: dict[int, tuple[str, int]]) -> dict:
    every = "\n".join(f"{doc_id} {prompts[doc_id][0]}" for doc_id in sorted(prompts))
    return {
        "documents": len(prompts),
        "longest_prompt": max(length for _, length in prompts.values()),
        "prompts_sha256": sha256(every.encode()).hexdigest(),
    }
