# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""What each stage trains (paper section 2): one table, `STAGES`, and the function that makes it so.

Where the embedding table is frozen, the special tokens' rows are a small parameter of their own that stands in for its
rows, so the optimiser knows of nothing else. Saving folds them into the table: all checkpoints of a run are plain
model folders. With LoRA, PEFT does the same and checkpoints are PEFT's folders.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from ..model.modeling_omnifusion import OmniFusionForConditionalGeneration
from .lora import LoraSettings, add_lora, path_of


if TYPE_CHECKING:
    from peft import PeftModel


# In the order of the data path; the rows go before the language model whose table they stand in.
PARTS = ("vision_tower", "multi_modal_projector", "special_token_rows", "language_model", "lm_head")

VisionTuning = Literal["frozen", "lora", "full"]

# How each part is trained; what is not named is frozen. `finetune` trains the whole embedding table, the special
# tokens' rows with it. How the vision tower is trained is chosen apart, for any stage.
STAGES = {
    "pretrain": {"multi_modal_projector": "full", "special_token_rows": "full"},
    "finetune": {"multi_modal_projector": "full", "language_model": "full", "lm_head": "full"},
    "lora": {"multi_modal_projector": "full", "special_token_rows": "full", "language_model": "lora"},
}


@dataclass
class PartPlan:
    """One line of the stage table: parameters in all, trained ones, tensors that hold these, bytes that they cost."""

    part: str
    parameters: int = 0
    trained: int = 0
    tensors: int = 0
    weight_bytes: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0

    def add(self, parameter: nn.Parameter):
        size = parameter.numel() * parameter.element_size()
        self.parameters += parameter.numel()
        self.weight_bytes += size
        if parameter.requires_grad:
            self.trained += parameter.numel()
            self.tensors += 1
            self.gradient_bytes += size
            self.optimizer_bytes += 2 * size  # AdamW's two moments


def apply_stage(
    model: OmniFusionForConditionalGeneration,
    stage: str,
    vision_tuning: VisionTuning = "frozen",
    lora: LoraSettings | None = None,
) -> "OmniFusionForConditionalGeneration | PeftModel":
    """Sets what trains, in float32 (updates of this size vanish in bfloat16); the rest keeps its dtype and is frozen.

    Returns the model, within a `PeftModel` where LoRA trains a part of it.
    Raises `ValueError` for an unknown stage, and for LoRA on the encoders beside an LLM that is trained whole.
    """
    parts = parts_of_stage(stage, vision_tuning)
    if "lora" in parts.values():
        model = add_lora(model, parts, lora or LoraSettings())
    else:
        if "special_token_rows" in parts:
            split_special_token_rows(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(part_of(name) in parts)
        model.save_pretrained = partial(_save_plain, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if "vision_tower" not in parts:
        model.get_submodule(path_of(model, "vision_tower")).register_forward_pre_hook(_stay_in_eval_mode)
    return model


def parts_of_stage(stage: str, vision_tuning: VisionTuning = "frozen") -> dict[str, Literal["full", "lora"]]:
    """What trains, and how: the line of `STAGES` and the vision tower."""
    if stage not in STAGES:
        raise ValueError(f"stage `{stage}` is unknown; use one of {list(STAGES)}.")
    if vision_tuning == "frozen":
        return STAGES[stage]
    if vision_tuning == "lora" and STAGES[stage].get("language_model") == "full":
        raise ValueError(
            f"stage {stage} trains the whole LLM, but a checkpoint with LoRA holds no whole LLM: use vision_tuning: "
            "full with it, or stage: lora."
        )
    return STAGES[stage] | {"vision_tower": vision_tuning}


def _stay_in_eval_mode(tower: nn.Module, args: tuple):
    """Trainer puts the whole model in training mode; frozen encoders must not drop paths (Swin would)."""
    tower.eval()


def part_of(name: str) -> str:
    """The part that a parameter of this name belongs to, also where PEFT renamed it."""
    if "trainable_tokens_delta" in name:
        return "special_token_rows"
    return next(part for part in PARTS if part in name.split("."))


def stage_plan(model: nn.Module) -> list[PartPlan]:
    """The stage table of a model as it is frozen now."""
    plans = {part: PartPlan(part) for part in PARTS}
    for name, parameter in model.named_parameters():
        plans[part_of(name)].add(parameter)
    return [plan for plan in plans.values() if plan.parameters]


def format_plan(plans: list[PartPlan]) -> str:
    """The stage table as text, bytes in MB (10^6)."""
    titles = ("part", "parameters", "trained", "tensors", "weights MB", "gradients MB", "AdamW MB")
    rows = [
        (plan.part, f"{plan.parameters:,}", f"{plan.trained:,}", f"{plan.tensors:,}")
        + tuple(f"{size / 1e6:,.2f}" for size in (plan.weight_bytes, plan.gradient_bytes, plan.optimizer_bytes))
        for plan in plans
    ]
    return "\n".join(f"{row[0]:<22}" + "".join(f"{cell:>15}" for cell in row[1:]) for row in (titles, *rows))


def split_special_token_rows(model: OmniFusionForConditionalGeneration):
    """Gives the special tokens' rows a float32 parameter of their own, `special_token_rows` (5, D), on the embedding.

    With a tied head the output rows follow; an untied head's rows stay, for these tokens are never predicted.
    """
    table = model.get_input_embeddings()
    ids = torch.tensor(model.config.special_token_ids, device=table.weight.device)
    table.register_buffer("special_token_ids", ids, persistent=False)
    table.special_token_rows = nn.Parameter(table.weight.detach()[ids].float())  # (5, D)
    table.register_forward_hook(_embed_rows)
    if model.config.tie_word_embeddings:
        model.lm_head.register_forward_hook(partial(_score_rows, table))
    model.register_load_state_dict_pre_hook(_unfold_rows)


def _embed_rows(table: nn.Embedding, args: tuple, embeddings: torch.Tensor) -> torch.Tensor:
    found = args[0].unsqueeze(-1) == table.special_token_ids  # (B, L, 5)
    rows = nn.functional.embedding(found.int().argmax(-1), table.special_token_rows)  # (B, L, D)
    scale = torch.as_tensor(getattr(table, "embed_scale", 1.0)).to(embeddings)  # Gemma's table scales what it gives
    return torch.where(found.any(-1, keepdim=True), rows.to(embeddings.dtype) * scale, embeddings)


def _score_rows(table: nn.Embedding, head: nn.Linear, args: tuple, logits: torch.Tensor) -> torch.Tensor:
    scores = nn.functional.linear(args[0], table.special_token_rows.to(args[0].dtype))  # (B, L, 5)
    return logits.index_copy(-1, table.special_token_ids, scores.to(logits.dtype))


def _table_keys(model: nn.Module) -> tuple[str, str]:
    """Names of the embedding table's weight and of the rows in the model's state dict."""
    table = model.get_input_embeddings()
    prefix = next(name for name, module in model.named_modules() if module is table)
    return f"{prefix}.weight", f"{prefix}.special_token_rows"


def _save_plain(model: OmniFusionForConditionalGeneration, folder: str, state_dict: dict | None = None, **options):
    """`save_pretrained` of a model in training. Rows go back into the table here and in no state dict: FSDP and
    DeepSpeed, which gather `state_dict`, know tensors by the names of parameters."""
    gathered = state_dict is not None
    state_dict = dict(state_dict if gathered else model.state_dict())
    if hasattr(model.get_input_embeddings(), "special_token_rows"):
        _fold_rows(model, state_dict, keep=not gathered)
    sharded, model.__class__ = model.__class__, OmniFusionForConditionalGeneration  # FSDP2's class has no file to copy
    try:
        OmniFusionForConditionalGeneration.save_pretrained(model, folder, state_dict=state_dict, **options)
    finally:
        model.__class__ = sharded


def _fold_rows(model: nn.Module, state_dict: dict, keep: bool):
    """`keep`: rows that the table's dtype rounds stay beside it, to resume from; FSDP and DeepSpeed need no such."""
    weight_key, rows_key = _table_keys(model)
    weight, rows = state_dict[weight_key], state_dict[rows_key]
    ids = model.get_input_embeddings().special_token_ids.to(weight.device)
    folded = weight.index_copy(0, ids, rows.to(weight))
    state_dict.update(dict.fromkeys([weight_key, *(model.all_tied_weights_keys.keys() & state_dict)], folded))
    if not keep or rows.dtype == weight.dtype:
        del state_dict[rows_key]


def _unfold_rows(model: nn.Module, state_dict: dict, prefix: str, *unused):
    weight_key, rows_key = (prefix + key for key in _table_keys(model))
    if weight_key in state_dict and rows_key not in state_dict:
        weight = state_dict[weight_key]
        state_dict[rows_key] = weight[model.get_input_embeddings().special_token_ids.to(weight.device)]
