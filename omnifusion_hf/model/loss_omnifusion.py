# Copyright 2026 The omnifusion_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""From the LLM's last hidden states to logits or, in training, to the loss without the logits of the whole batch.

Provenance: the loss equals transformers' `ForCausalLMLoss`; torch's chunked `linear_cross_entropy` computes it.
"""

import torch
from torch import nn
from torch.nn import functional as F
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


def loss_of_answers(
    hidden_states: torch.Tensor,
    labels: torch.LongTensor,
    head: nn.Module,
    config: OmniFusionConfig,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.LongTensor | None = None,
    ignore_index: int = -100,
    **kwargs,
) -> torch.Tensor:
    """`ForCausalLMLoss` of the labelled positions only.

    torch's chunked `linear_cross_entropy` holds the logits of some hundred positions at a time. Before torch 2.13, and
    for a head that is more than a matrix (a soft cap, trained special-token rows, LoRA, a quantised or sharded head),
    the logits of all labelled positions are computed at once.

    Args:
        hidden_states: (B, L, D).
        labels: (B, L), `ignore_index` without a target; shifted inside.
        num_items_in_batch: labels in all batches of a step, the divisor of the sum; by default this batch's own.
        shift_labels: (B, L), shifted already, instead of `labels`: for a sequence that is split over devices.
    """
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]  # (B, L)
    targets = shift_labels.to(hidden_states.device)
    answers = targets != ignore_index
    states, targets = hidden_states[answers], targets[answers]  # (N, D), (N,)
    if is_plain(head, config.text_config):
        predicted = config.predicted_vocab_size
        weight = head.weight if predicted is None else head.weight[:predicted]  # a slice's gradient costs a copy
        losses = chunked_cross_entropy(states, weight, targets, config.text_config)  # (N,)
    else:
        losses = F.cross_entropy(predict(states, head, config).float(), targets, reduction="none")  # (N,)
    count = len(targets) if num_items_in_batch is None else num_items_in_batch
    return losses.float().sum() / torch.as_tensor(count, device=losses.device)


def is_plain(head: nn.Module, text_config: PreTrainedConfig) -> bool:
    """Whether logits are `head.weight` times hidden state times a factor: no subclass, no hook, no soft cap."""
    soft_cap = getattr(text_config, "final_logit_softcapping", None)
    hooked = head._forward_hooks or head._forward_pre_hooks
    return hasattr(nn, "LinearCrossEntropyOptions") and type(head) is nn.Linear and not hooked and soft_cap is None


def chunked_cross_entropy(
    states: torch.Tensor, weight: torch.Tensor, targets: torch.LongTensor, text_config: PreTrainedConfig
) -> torch.Tensor:
    """Cross-entropy of each position, (N,), from states (N, D), the head's weight (vocab, D) and targets (N,)."""
    device = states.device.type
    if torch.is_autocast_enabled(device):  # autocast ignores this function
        dtype = torch.get_autocast_dtype(device)
        states, weight = states.to(dtype), weight.to(dtype)
    states = scale_logits(states, text_config)  # factors of the logits are factors of the states
    options = nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(states, weight, targets, reduction="none", options=options)
