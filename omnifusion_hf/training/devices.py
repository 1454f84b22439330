# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Several GPUs: what each must hold, and what cannot be sharded is refused before a model is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from .stages import STAGES, PartPlan


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


def check_sharding(stage: str, args: TrainingArguments):
    """Raises `ValueError` where FSDP or DeepSpeed would shard special-token rows, a part of the embedding table.

    Checkpoints have the rows within the table, which no rank has whole there.
    """
    if "special_token_rows" in STAGES.get(stage, ()) and is_sharded(args):
        raise ValueError(
            f"stage {stage} keeps the special tokens' rows apart, which FSDP and DeepSpeed cannot save: use "
            "recipes/accelerate/ddp.yaml. It trains little, and the frozen weights are bfloat16."
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
