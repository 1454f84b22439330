# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""OmniFusion in vLLM. vLLM's Transformers backend runs our encoders, adapter and LLM unchanged, but has its own LM
head, so the steps of `predict` and `generate()` after the head are repeated here.
"""

import torch
from vllm.config import VllmConfig

from omnifusion_hf._compat import vllm_backend_class, vllm_head
from omnifusion_hf.model.modeling_omnifusion_head import scale_logits


class OmniFusionForVllm(vllm_backend_class()):
    """vLLM's multimodal Transformers model; tokens that `generate()` suppresses have probability 0 here as well."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        model_config = vllm_config.model_config
        config = model_config.hf_config
        for part in (config.get_text_config(), *config.vision_config.encoder_configs):
            part.dtype = model_config.dtype  # transformers builds each part in the dtype of its own configuration
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        vocab_size = self.text_config.vocab_size
        self.logits_processor = vllm_head(vocab_size)  # vLLM's default one does not know every scaling of logits
        predicted = self.config.predicted_vocab_size or vocab_size
        never_generated = sorted({*range(predicted, vocab_size), *self.config.special_token_ids})
        self.register_buffer("never_generated", torch.tensor(never_generated), persistent=False)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """(tokens, vocab) on the ranks that sample, None on others."""
        logits = super().compute_logits(hidden_states)
        if logits is None:
            return None
        logits = scale_logits(logits, self.text_config)
        return logits.index_fill_(-1, self.never_generated, float("-inf"))
