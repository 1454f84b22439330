# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Several GPUs: what each must hold, and what cannot be sharded is refused."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from .stages import PartPlan


def is_sharded(args: TrainingArguments) -> bool:
    """Whether FSDP or DeepSpeed spreads the weights, by `accelerate launch` or by the recipe."""
    launched = parse_flag_from_env("ACCELERATE_USE_FSDP") or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    return bool(launched or args.fsdp or args.deepspeed)


def memory_per_device(plans: list[PartPlan], devices: int = 1, sharded: bool = False) -> int:
    """Bytes of weights, gradients, AdamW's state and what a step holds beside them, without activations.

    Computed, not measured. Sharded, all is spread over the devices. Otherwise DDP holds gradients once more in its
    buckets. Autocast's bfloat16 copies (2 bytes of 4) are of all that trains; of sharded weights they come and go.
    """
    state = sum(plan.weight_bytes + plan.gradient_bytes + plan.optimizer_bytes for plan in plans)
    if sharded:
        return state // devices
    gradients = sum(plan.gradient_bytes for plan in plans)
    return state + gradients // 2 + (gradients if devices > 1 else 0)


def global_batch(args: TrainingArguments) -> int:
    """Samples of one optimiser step, over all devices."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def check_sharding(parts: dict[str, str], tied: bool, args: TrainingArguments):
    """Raises `ValueError` for LoRA under FSDP where the LLM's head is its embedding table: PEFT's layer around the
    table hides from accelerate that both are one."""
    if tied and "lora" in parts.values() and (parse_flag_from_env("ACCELERATE_USE_FSDP") or args.fsdp):
        raise ValueError(
            "LoRA under FSDP needs an LLM whose head is not its embedding table (tie_word_embeddings: false), which "
            "this one's is: use omnifusion_hf/recipes/accelerate/zero3.yaml or ddp.yaml."
        )


@contextmanager
def whole_weights(args: TrainingArguments) -> Iterator[None]:
    """Within it, `from_pretrained` gives whole weights under ZeRO-3 too: a stage sets their dtypes and counts them.
    (`zero3_init_flag: false` does not reach transformers.)"""
    plugin = args.deepspeed_plugin
    if plugin is not None:
        unset_hf_deepspeed_config()
    yield
    if plugin is not None:
        plugin.set_deepspeed_weakref()


def spread_weights(model: nn.Module, args: TrainingArguments):
    """Under ZeRO-3, gives each device its part of the weights, one parameter after the other: DeepSpeed would first
    move the whole model to every device. Weights are cast as it does; what trains it keeps in float32 too."""
    plugin = args.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return
    from deepspeed import zero

    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    stage = plugin.hf_ds_config.config["zero_optimization"]
    config = {"zero_optimization": {name: value for name, value in stage.items() if value != "auto"}}
    zero.Init(model, config_dict_or_path=config | {"train_batch_size": args.world_size}, dtype=dtype)
