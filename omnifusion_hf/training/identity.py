# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Which run is it? What decides its result: every field of its recipe but those of `FREE`, and the content of its base
model and of its data. A run goes on as the same one only."""

import json
import re
from dataclasses import fields
from pathlib import Path

import transformers
from torch.utils.data import Dataset, IterableDataset
from transformers import TrainingArguments
from transformers.utils import CONFIG_NAME, cached_file

from ..io import SUMMARY
from .devices import global_batch, is_sharded
from .fingerprints import content_hash, differences, leaves
from .grouping import order_seed


SETTINGS = "training_settings.json"
# Fields that may differ when a run goes on; all others are compared, those of coming versions too.
FREE = re.compile(
    r"""(
    output_dir | save_\w+ | \w+_checkpoint | load_best_model_at_end | push_to_hub | hub_\w+        # what is kept
    | do_\w+ | \w*eval\w* | prediction_loss_only | include_\w+ | metric_for_best_model | greater_is_better
    | log\w* | run_name | project | trackio_\w+ | report_to | disable_tqdm | debug | skip_memory_metrics
    | max_steps | num_train_epochs | ignore_data_skip                                                # how far it goes
    | bf16 | fp16 | tf32 | torch_\w+ | use_liger_kernel | liger_\w+ | use_cache | \w+_checkpointing\w*
    | full_determinism | attn_implementation | packing | max_length | on_bad_sample | cache_vision_features
    | use_cpu | local_rank | ddp_\w+ | fsdp\w* | deepspeed | parallelism_config                     # which devices
    | dataloader_(pin|prefetch|multi)\w+ | accelerator_config\.(dispatch_batches|non_blocking) | remove_unused_columns
    | \w+_batch_size | gradient_accumulation_steps | model_name_or_path | data_path | image_folder  # said otherwise
    )""",
    re.VERBOSE,
)
LEFT_BY_TRAINING = (SUMMARY, SETTINGS, "trainer_state.json")


def identity_of(model_data, args: TrainingArguments, dataset: Dataset | IterableDataset, with_lora: bool) -> dict:
    """What must be the same when the run goes on, as JSON holds it.

    Args:
        model_data: the recipe's fields beside those of TrainingArguments.
        dataset: of encoded samples.
        with_lora: whether the stage uses the recipe's LoRA settings.
    """
    recipe = {entry.name: getattr(model_data, entry.name) for entry in fields(model_data)} | args.to_dict()
    sources = dataset.identity()
    recipe |= {
        "optimizer": recipe["optimizer"] or recipe.pop("optim"),
        "data_seed": order_seed(args),
        "global_batch": global_batch(args),
        "sharded": is_sharded(args),
        "base_model": base_content(model_data.model_name_or_path),
        "number of sources": len(sources),
        **dict(leaves({"accelerator_config": recipe.pop("accelerator_config"), "source": sources})),
        "transformers": transformers.__version__,
    }
    if not isinstance(dataset, IterableDataset):  # of a stream, workers decide the order
        recipe.pop("dataloader_num_workers")
    idle = () if with_lora else ("lora_rank", "lora_alpha", "lora_dropout")
    kept = {name: value for name, value in recipe.items() if name not in idle and not FREE.fullmatch(name)}
    return json.loads(json.dumps(kept, default=str))


def changes_of_run(before: dict, now: dict) -> list[str]:
    """What differs between two identities. A name that only one of them has is passed over: fields come and go with
    versions of transformers, which are named where another value differs."""
    both = before.keys() & now.keys()
    changed = differences(*({name: run[name] for name in now if name in both} for run in (before, now)))
    return [] if all(change.startswith("transformers was") for change in changed) else changed


def base_content(name: str) -> str:
    """Of a folder the hash of what is loaded from it, of a model of the Hub its commit."""
    folder = Path(cached_file(name, CONFIG_NAME)).parent
    if not Path(name).is_dir():
        return folder.name
    kinds = (".safetensors", ".json", ".jinja", ".model", ".txt")
    files = (path for path in sorted(folder.iterdir()) if path.suffix in kinds and path.name not in LEFT_BY_TRAINING)
    return content_hash(files)
