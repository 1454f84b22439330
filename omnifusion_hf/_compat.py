# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Undocumented names of other libraries, each with the reason why nothing public serves and the versions it was tried
on. Everything else in this package uses public names.
"""


def attn_implementation(config) -> str | None:
    """The attention implementation in use. transformers has `set_attn_implementation`, but no public way to read it.

    Tried on transformers 5.13 to 5.24.
    """
    return config._attn_implementation


def vllm_backend_class() -> type:
    """vLLM's class that runs any multimodal model of transformers; vLLM names it in its documentation, but documents
    no subclasses of it.

    Tried on vLLM (CPU build) 0.30 and 0.32.
    """
    from vllm.model_executor.models.transformers import TransformersMultiModalForCausalLM

    return TransformersMultiModalForCausalLM


def vllm_head(vocab_size: int):
    """vLLM's product of hidden states and head, without any scaling. vLLM has no documented way to build it.

    Tried on vLLM (CPU build) 0.30 and 0.32.
    """
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    return LogitsProcessor(vocab_size)
