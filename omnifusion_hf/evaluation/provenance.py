# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""What a score rests on: versions, and hashes of the processor and of every prompt's tokens.

Two runs whose scores differ but whose hashes agree saw the same; another prompt hash says that the prompts changed
(a second BOS, another template, other documents), another processor hash that images or text are prepared otherwise.
"""

import json
from hashlib import sha256
from importlib.metadata import version

from accelerate.utils import gather_object

from ..inference import context_length


PACKAGES = ("omnifusion_hf", "transformers", "torch", "lmms-eval")


def processor_hash(processor) -> str:
    """SHA-256 of all that turns images and text into model inputs."""
    settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
    parts = (settings, processor.chat_template, processor.tokenizer.backend_tokenizer.to_str())
    return sha256("\0".join(parts).encode()).hexdigest()


class RunRecord:
    """Collects what a run's scores rest on while prompts are made: `add` each, then `of_tasks`."""

    def __init__(self, pretrained: str, model, processor, batch_size: int):
        self.facts = {
            "model": pretrained,
            "versions": {package: version(package) for package in PACKAGES},
            "dtype": str(model.dtype).removeprefix("torch."),
            "attn_implementation": model.config._attn_implementation,
            "batch_size": batch_size,
            "processor_sha256": processor_hash(processor),
            "context_length": context_length(model.config.text_config),
        }
        self.prompts = {}  # task -> doc_id -> (hash, length)

    def add(self, task: str, doc_id: int, input_ids: list[int]):
        """A prompt's tokens, without padding."""
        self.prompts.setdefault(task, {})[doc_id] = (sha256(repr(input_ids).encode()).hexdigest(), len(input_ids))

    def of_tasks(self) -> dict[str, dict]:
        """The facts by task, over all processes; every one of them must call this."""
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
