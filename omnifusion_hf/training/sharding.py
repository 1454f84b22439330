# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Several GPUs: the memory that each needs, loading and sharding of weights, and what cannot be sharded."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.integrations import HfDeepSpeedConfig


def launched_with(strategy: str) -> bool:
    """Whether `accelerate launch` set up this strategy, `FSDP` or `DEEPSPEED`."""
    return os.environ.get(f"ACCELERATE_USE_{strategy}", "").lower() in ("1", "true", "yes", "on", "y", "t")


def is_sharded(args: TrainingArguments) -> bool:
    """Whether FSDP or DeepSpeed shards the weights, set by `accelerate launch` or by the recipe."""
    return bool(launched_with("FSDP") or launched_with("DEEPSPEED") or args.fsdp or args.deepspeed)


def half_precision(args: TrainingArguments) -> torch.dtype | None:
    """The dtype in which Trainer computes by autocast, if it does."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def memory_per_device(plans: list, devices: int = 1, sharded: bool = False) -> int:
    """Bytes of weights, gradients, AdamW's state and temporary copies on each device, without activations.

    Computed from the [`PartPlan`]s, not measured. If sharded, everything is spread over the devices. Otherwise DDP
    holds a second copy of the gradients in its buckets. Autocast holds a bfloat16 copy (2 bytes of 4) of trained
    weights; copies of sharded weights are temporary.
    """
    state = sum(plan.weight_bytes + plan.gradient_bytes + plan.optimizer_bytes for plan in plans)
    if sharded:
        return state // devices
    gradients = sum(plan.gradient_bytes for plan in plans)
    return state + gradients // 2 + (gradients if devices > 1 else 0)


def check_sharding(parts: dict[str, str], tied: bool, args: TrainingArguments):
    """Raises `ValueError` for LoRA under FSDP if the LLM's head is its embedding table: PEFT's layer around the table
    hides from accelerate that both are one tensor."""
    if tied and "lora" in parts.values() and (launched_with("FSDP") or args.fsdp):
        raise ValueError(
            "LoRA under FSDP needs an LLM with a head of its own (tie_word_embeddings: false), but this one's head is "
            "its embedding table: use omnifusion_hf/recipes/accelerate/zero3.yaml or ddp.yaml."
        )


@contextmanager
def whole_weights(args: TrainingArguments) -> Iterator[None]:
    """Within it, `from_pretrained` gives whole weights under ZeRO-3 too: a stage sets their dtypes and counts them.
    (`zero3_init_flag: false` does not reach transformers.)"""
    plugin = args.deepspeed_plugin
    if plugin is None:
        yield
        return
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 0}})  # transformers refers to it weakly
    yield
    plugin.set_deepspeed_weakref()
    del config


def spread_weights(model: nn.Module, args: TrainingArguments):
    """Under ZeRO-3, gives each device its part of the weights, one parameter after the other; DeepSpeed would first
    move the whole model to every device. Casts as DeepSpeed does, which also keeps trained weights in float32."""
    plugin = args.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return
    from deepspeed import zero

    dtype = half_precision(args) or torch.float32
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    stage = plugin.hf_ds_config.config["zero_optimization"]
    config = {"zero_optimization": {name: value for name, value in stage.items() if value != "auto"}}
    zero.Init(model, config_dict_or_path=config | {"train_batch_size": args.world_size}, dtype=dtype)
