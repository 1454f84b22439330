# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Training of the special tokens' embedding rows alone (paper section 2, stage 1).

The rows become a small parameter of their own on the frozen embedding table, so the optimizer holds no state for the
rest of the table. State dicts hold the table with the rows in it, and the rows too. Saving leaves these out: every
checkpoint is a plain model folder.
"""

from functools import partial

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..model.modeling_omnifusion import OmniFusionForConditionalGeneration
from .modules import as_class, path_of


class OmniFusionInTraining(OmniFusionForConditionalGeneration):
    """An OmniFusion model in training, which saves itself as a plain OmniFusion model."""

    def save_pretrained(self, save_directory, *args, state_dict: dict | None = None, **options):
        """As in transformers. `state_dict` is given by FSDP and DeepSpeed, which gather it and resume from files of
        their own. Otherwise, rows that the table's dtype rounds stay in addition, so that a run resumes exactly."""
        gathered = state_dict is not None
        state_dict = dict(state_dict if gathered else self.state_dict())
        table = self.get_input_embeddings()
        if hasattr(table, "special_token_rows"):
            _fold_rows(self, state_dict)
            if gathered or table.weight.dtype == table.special_token_rows.dtype:
                del state_dict[f"{path_of(self, table)}.special_token_rows"]
        plain = as_class(self, OmniFusionForConditionalGeneration)
        plain.save_pretrained(save_directory, *args, state_dict=state_dict, **options)


def split_special_token_rows(model: OmniFusionForConditionalGeneration):
    """Gives the special tokens' rows a float32 parameter of their own, `special_token_rows` (5, D), on the embedding.

    With a tied head the output rows follow. An untied head's rows stay, because these tokens are never predicted.
    """
    table = model.get_input_embeddings()
    ids = torch.tensor(model.config.special_token_ids, device=table.weight.device)
    table.register_buffer("special_token_ids", ids, persistent=False)
    table.special_token_rows = nn.Parameter(table.weight.detach()[ids].float())  # (5, D)
    table.register_forward_hook(_embed_rows)
    table.register_load_state_dict_pre_hook(_unfold_rows)
    model.register_state_dict_post_hook(_fold_rows)
    if model.config.tie_word_embeddings:
        model.get_output_embeddings().register_forward_hook(partial(_score_rows, table))


def _embed_rows(table: nn.Embedding, args: tuple, embeddings: torch.Tensor) -> torch.Tensor:
    found = args[0].unsqueeze(-1) == table.special_token_ids  # (B, L, 5)
    rows = nn.functional.embedding(found.int().argmax(-1), table.special_token_rows)  # (B, L, D)
    scale = torch.as_tensor(getattr(table, "embed_scale", 1.0)).to(embeddings)  # Gemma's table scales its output
    return torch.where(found.any(-1, keepdim=True), rows.to(embeddings.dtype) * scale, embeddings)


def _score_rows(table: nn.Embedding, head: nn.Linear, args: tuple, logits: torch.Tensor) -> torch.Tensor:
    scores = nn.functional.linear(args[0], table.special_token_rows.to(args[0].dtype))  # (B, L, 5)
    return logits.index_copy(-1, table.special_token_ids, scores.to(logits.dtype))


def _fold_rows(model: OmniFusionForConditionalGeneration, state_dict: dict, prefix: str = "", *unused):
    """Writes the rows into the table (and a tied head) of a state dict, unless its tensors are sharded."""
    table, head = (prefix + path_of(model, module) for module in (model.get_input_embeddings(), model.lm_head))
    weight, rows = state_dict[f"{table}.weight"], state_dict[f"{table}.special_token_rows"]
    if isinstance(weight, DTensor) or not weight.numel():
        return
    ids = model.get_input_embeddings().special_token_ids.to(weight.device)
    state_dict[f"{table}.weight"] = folded = weight.detach().index_copy(0, ids, rows.detach().to(weight))
    if model.config.tie_word_embeddings and f"{head}.weight" in state_dict:
        state_dict[f"{head}.weight"] = folded


def _unfold_rows(table: nn.Embedding, state_dict: dict, prefix: str, *unused):
    """Takes the rows of a plain folder from its table."""
    weight = state_dict.get(f"{prefix}weight")
    if weight is not None and f"{prefix}special_token_rows" not in state_dict:
        state_dict[f"{prefix}special_token_rows"] = weight[table.special_token_ids.to(weight.device)]
