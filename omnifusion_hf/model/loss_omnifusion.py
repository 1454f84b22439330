# Copyright 2026 The omnifusion_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""From the LLM's last hidden states to logits, and the check of the labels that are compared with them."""

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import torch_compilable_check

from .configuration_omnifusion import OmniFusionConfig


def scale_logits(logits: torch.Tensor, text_config: PreTrainedConfig) -> torch.Tensor:
    """Logit scaling after lm_head (Cohere, Granite, Gemma 2) of logits (…, vocab)."""
    if getattr(text_config, "logit_scale", None) is not None:
        logits = logits * text_config.logit_scale
    if getattr(text_config, "logits_scaling", None) is not None:
        logits = logits / text_config.logits_scaling
    cap = getattr(text_config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def predict(hidden_states: torch.Tensor, head: nn.Module, config: OmniFusionConfig) -> torch.Tensor:
    """Logits (…, vocab) of hidden states (…, D)."""
    logits = scale_logits(head(hidden_states), config.text_config)
    # CODEPATH: set in conversions of the authors' v1.1, whose vocabulary had no special tokens
    if config.predicted_vocab_size is not None:
        logits[..., config.predicted_vocab_size :] = torch.finfo(logits.dtype).min
    return logits


def check_labels(labels: torch.LongTensor | None, config: OmniFusionConfig):
    """Raises `ValueError` for a label whose row is never predicted: its loss would be infinite."""
    rows = config.predicted_vocab_size
    if rows is not None and labels is not None:
        torch_compilable_check(
            (labels < rows).all(),
            lambda: (
                f"Label {labels.max().item()} is never predicted: config.predicted_vocab_size is {rows}. Set it to "
                "None to teach tokens that were added (resize_token_embeddings does), or mask the label with -100."
            ),
        )
