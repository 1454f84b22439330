# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""OmniFusion in vLLM, whose Transformers backend runs our encoders, adapter and LLM as they are. vLLM's own head takes
the place of ours, so what `predict` and `generate()` do behind the head is done here.
"""

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.transformers import TransformersMultiModalForCausalLM


class OmniFusionForVllm(TransformersMultiModalForCausalLM):
    """vLLM's multimodal Transformers model; tokens that `generate()` never gives have no probability here either."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        rows = range(self.text_config.vocab_size)
        predicted = rows[: self.config.predicted_vocab_size]
        self.never_generated = sorted({*rows} - {*predicted} | {*self.config.special_token_ids})

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """(tokens, vocab) on the ranks that sample, None on others."""
        logits = super().compute_logits(hidden_states)
        if logits is not None:
            logits[..., self.never_generated] = float("-inf")
        return logits
