# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The identity of a run: every setting that decides its result (all fields but those of `FREE`) and the content of its
base model and data. Only the same run may resume. Also the hashes and comparisons that this needs."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import hf_hub_download
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from ..io import SUMMARY
from .sharding import is_sharded


SETTINGS = "training_settings.json"
# Fields that may differ when a run resumes. All others are compared, those of coming versions too.
FREE = re.compile(
    r"""(
    output_dir | save_\w+ | \w+_checkpoint | load_best_model_at_end | push_to_hub | hub_\w+        # what is kept
    | do_\w+ | (?!eval_share)\w*eval\w* | prediction_loss_only | include_\w+ | metric_for_best_model
    | greater_is_better | log\w* | run_name | project | trackio_\w+ | report_to | disable_tqdm | debug
    | skip_memory_metrics
    | max_steps | num_train_epochs | ignore_data_skip                                              # how long it trains
    | bf16 | fp16 | tf32 | torch_\w+ | use_liger_kernel | liger_\w+ | use_cache | \w+_checkpointing\w*
    | full_determinism | attn_implementation | packing | max_length | on_bad_sample | cache_vision_features
    | use_cpu | local_rank | ddp_\w+ | fsdp\w* | deepspeed | parallelism_config                     # which devices
    | dataloader_(pin|prefetch|multi)\w+ | accelerator_config\.(dispatch_batches|non_blocking) | remove_unused_columns
    | \w+_batch_size | gradient_accumulation_steps                                                  # global_batch
    | model_name_or_path | data_path | image_folder                                                 # their content
    )""",
    re.VERBOSE,
)
LEFT_BY_TRAINING = (SUMMARY, SETTINGS, "trainer_state.json")
BLOCK, EVERY = 2**16, 2**22  # of other files than JSON above 64 MB, one block in 4 MB is read


def identity_of(recipe, args, conversations: Dataset | IterableDataset, with_lora: bool) -> dict:
    """The settings and content that a resumed run must have again, as JSON values.

    Args:
        recipe: the [`ModelDataArguments`].
        args: the [`OmniFusionTrainingArguments`].
        conversations: the dataset of raw samples, with a method `identity()`.
        with_lora: whether the stage uses the recipe's LoRA settings.
    """
    settings = {entry.name: getattr(recipe, entry.name) for entry in fields(recipe)} | args.to_dict()
    sources = conversations.identity()
    settings |= {
        "optimizer": settings["optimizer"] or settings.pop("optim"),
        "data_seed": args.order_seed,
        "global_batch": args.global_batch,
        "sharded": is_sharded(args),
        "base_model": base_content(recipe.model_name_or_path),
        "lora_weights": recipe.lora_weights and base_content(recipe.lora_weights),
        "number of sources": len(sources),
        **dict(leaves({"accelerator_config": settings.pop("accelerator_config"), "source": sources})),
        "transformers": transformers.__version__,
    }
    if not isinstance(conversations, IterableDataset):  # the order of a stream depends on the workers
        settings.pop("dataloader_num_workers")
    idle = "$" if with_lora else "lora_"
    kept = {k: value for k, value in settings.items() if not (re.match(idle, k) or FREE.fullmatch(k))}
    return json.loads(json.dumps(kept, default=str))


def changes_of_run(before: dict, now: dict) -> list[str]:
    """The differences between two identities. Names that only one of them has are ignored, because fields come and go
    with versions of transformers. These versions are named if another value differs."""
    both = before.keys() & now.keys()
    changed = differences(*({name: run[name] for name in now if name in both} for run in (before, now)))
    return [] if all(change.startswith("transformers was") for change in changed) else changed


def base_content(name: str) -> str:
    """The hash of the files that are loaded from a folder; the commit of a model on the Hub."""
    if not Path(name).is_dir():
        return Path(hf_hub_download(name, "config.json")).parent.name
    kinds = (".safetensors", ".json", ".jinja", ".model", ".txt")
    files = (path for path in sorted(Path(name).iterdir()) if path.suffix in kinds)
    return content_hash(path for path in files if path.name not in LEFT_BY_TRAINING)


def leaves(settings: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted name, also those inside dicts and lists of dicts."""
    for name, value in settings.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(before: dict, now: dict) -> list[str]:
    """`NAME was … and is …` for each name whose values differ."""
    return [
        f"{name} was {_short(before.get(name))} and is {_short(now.get(name))}"
        for name in before | now
        if before.get(name) != now.get(name)
    ]


def _short(value) -> str:
    return str(value) if len(str(value)) < 60 else f"{str(value)[:60]}…"


def content_hash(files: Iterable[Path], pieces: Iterable[bytes] = ()) -> str:
    """A hash of files and then of pieces. JSON and small files are read whole, of others the size, the end and one
    block in 64."""
    digest = blake2b(digest_size=8)
    for path in files:
        size = path.stat().st_size
        whole = size <= 2**26 or path.suffix in (".json", ".jsonl")
        digest.update(f"{size} ".encode())
        with path.open("rb") as file:
            for place in (*range(0, size, BLOCK if whole else EVERY), max(0, size - BLOCK)):
                file.seek(place)
                digest.update(file.read(BLOCK))
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def as_bytes(value) -> bytes:
    """A row or raw sample as bytes to be hashed; images by their pixels or by the content of their file."""
    return json.dumps(value, default=_image).encode()


def _image(value) -> str:
    if isinstance(value, Path):
        return content_hash([value]) if value.is_file() else ""
    if isinstance(value, Image.Image):
        value = value.tobytes()
    return value.hex() if isinstance(value, bytes) else str(value)
