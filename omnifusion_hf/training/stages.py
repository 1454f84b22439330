# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The parts that each stage trains (paper section 2): the table `STAGES` and the function that applies it.

If the embedding table is frozen, the special tokens' rows train alone, see special_token_rows.py. With LoRA, PEFT
trains these rows, and checkpoints are PEFT's folders.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

from ..model.modeling_omnifusion import OmniFusionForConditionalGeneration
from .lora import LoraSettings, add_lora
from .modules import as_class
from .special_token_rows import OmniFusionInTraining, split_special_token_rows


if TYPE_CHECKING:
    from peft import PeftModel


# In the order of the data path. The rows come before the language model, whose table holds them.
PARTS = ("vision_tower", "multi_modal_projector", "special_token_rows", "language_model", "lm_head")

VisionTuning = Literal["frozen", "lora", "full"]

# How each part trains; other parts are frozen. `finetune` trains the whole embedding table, special tokens' rows
# included. The vision tower is set separately, for any stage.
STAGES = {
    "pretrain": {"multi_modal_projector": "full", "special_token_rows": "full"},
    "finetune": {"multi_modal_projector": "full", "language_model": "full", "lm_head": "full"},
    "lora": {"multi_modal_projector": "full", "special_token_rows": "full", "language_model": "lora"},
}


@dataclass
class PartPlan:
    """One line of the stage table. `tensors` counts trained ones; `optimizer_bytes` are of AdamW's two moments."""

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
            self.optimizer_bytes += 2 * size


def apply_stage(
    model: OmniFusionForConditionalGeneration,
    stage: str,
    vision_tuning: VisionTuning = "frozen",
    lora: LoraSettings | None = None,
) -> "OmniFusionForConditionalGeneration | PeftModel":
    """Prepares a model for a stage: trained parts are float32, because bfloat16 would round their updates to zero;
    other parts keep their dtype and are frozen. Changes `model`.

    Returns the model to train and to save: a `PeftModel` if LoRA trains a part, else an [`OmniFusionInTraining`].
    Raises `ValueError` for an unknown stage, for LoRA on the encoders if the whole LLM trains, and for weights of LoRA
    that do not fit.
    """
    parts = parts_of_stage(stage, vision_tuning)
    if "lora" in parts.values():
        model = add_lora(model, parts, lora or LoraSettings())
    else:
        if "special_token_rows" in parts:
            split_special_token_rows(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(part_of(name) in parts)
        model = as_class(model, OmniFusionInTraining)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def parts_of_stage(stage: str, vision_tuning: VisionTuning = "frozen") -> dict[str, Literal["full", "lora"]]:
    """The parts that train and how: the line of `STAGES` and the vision tower. Raises as [`apply_stage`]."""
    if stage not in STAGES:
        raise ValueError(f"stage `{stage}` is unknown; use one of {list(STAGES)}.")
    if vision_tuning == "frozen":
        return STAGES[stage]
    if vision_tuning == "lora" and STAGES[stage].get("language_model") == "full":
        raise ValueError(
            f"stage {stage} trains the whole LLM, but a LoRA checkpoint does not hold the whole LLM: use "
            "vision_tuning: full, or stage: lora."
        )
    return STAGES[stage] | {"vision_tower": vision_tuning}


def part_of(name: str) -> str:
    """The part of a parameter with this name, also if PEFT renamed it."""
    if "trainable_tokens_delta" in name:
        return "special_token_rows"
    return next(part for part in PARTS if part in name.split("."))


def stage_plan(model: nn.Module) -> list[PartPlan]:
    """The stage table of a model in its current state."""
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
