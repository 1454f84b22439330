# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""OmniFusion in vLLM, whose Transformers backend runs our encoders, adapter and LLM as they are. vLLM's own head takes
the place of ours, so what `predict` and `generate()` do behind the head is done here.
"""

import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.models.transformers import TransformersMultiModalForCausalLM

from omnifusion_hf.model.loss_omnifusion import scale_logits


class OmniFusionForVllm(TransformersMultiModalForCausalLM):
    """vLLM's multimodal Transformers model; tokens that `generate()` never gives have no probability here either."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        vocab_size = self.text_config.vocab_size
        self.logits_processor = LogitsProcessor(vocab_size)  # the product alone: vLLM's does not know every scaling
        predicted = self.config.predicted_vocab_size or vocab_size
        never_generated = sorted({*range(predicted, vocab_size), *self.config.special_token_ids})
        self.register_buffer("never_generated", torch.tensor(never_generated), persistent=False)

    def _patch_config(self):
        """Parts are built in the dtype that their own configuration says; all are served in one."""
        super()._patch_config()
        for part in (self.text_config, *self.config.vision_config.encoder_configs):
            part.dtype = self.config.dtype

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """(tokens, vocab) on the ranks that sample, None on others."""
        logits = super().compute_logits(hidden_states)
        if logits is None:
            return None
        logits = scale_logits(logits, self.text_config)
        return logits.index_fill_(-1, self.never_generated, float("-inf"))
