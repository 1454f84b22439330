# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The loss from the LLM's last hidden states, without the logits of the whole batch, which are its largest tensor.

Provenance: the loss equals transformers' `ForCausalLMLoss`; torch's chunked `linear_cross_entropy` computes it.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.configuration_utils import PreTrainedConfig

from ..model.configuration_omnifusion import OmniFusionConfig
from ..model.modeling_omnifusion_head import predict, scale_logits


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
