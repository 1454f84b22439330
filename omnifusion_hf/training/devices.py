# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Several GPUs: what cannot be sharded is refused before a model is loaded."""

from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments

from .stages import STAGES


def check_sharding(stage: str, args: TrainingArguments):
    """Raises `ValueError` where FSDP or DeepSpeed would shard special-token rows, a part of the embedding table.

    Checkpoints have the rows within the table, which no rank has whole there.
    """
    sharded = parse_flag_from_env("ACCELERATE_USE_FSDP") or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    if "special_token_rows" in STAGES.get(stage, ()) and (sharded or args.fsdp or args.deepspeed):
        raise ValueError(
            f"stage {stage} keeps the special tokens' rows apart, which FSDP and DeepSpeed cannot save: use "
            "recipes/accelerate/ddp.yaml. It trains little, and the frozen weights are bfloat16."
        )
