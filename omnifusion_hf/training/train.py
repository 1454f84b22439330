# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""`omnifusion train`: a recipe to a trained model folder, by transformers' own Trainer."""

import json
import os
import time
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Literal

import torch
import transformers
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import LabelSmoother
from transformers.utils import find_adapter_config_file

from ..io import SUMMARY, friendly_load_errors, read_text, read_yaml, write_whole
from ..model.configuration_omnifusion import OmniFusionConfig
from ..model.processing_omnifusion import OmniFusionProcessor
from .collators import PaddingCollator
from .conversations import BadSamplePolicy, BadSamples, ConversationFormat
from .devices import check_sharding, global_batch, is_sharded, memory_per_device, spread_weights, whole_weights
from .grouping import group_by_length, order_seed
from .identity import identity_of
from .lora import LoraSettings
from .mixture import Source, load_data
from .optimizer import optimizer_for
from .packing import packing_collator
from .preprocessing import ConversationEncoder, encode
from .progress import check_reporting, plot_loss, watch
from .stages import STAGES, PartPlan, VisionTuning, apply_stage, format_plan, parts_of_stage, stage_plan
from .stopping import Begin, SaveAndStop, checkpoint_to_resume
from .vision_cache import cached_dataset


@dataclass
class ModelDataArguments:
    """What to train on what; everything else in a recipe is a field of transformers' TrainingArguments."""

    model_name_or_path: str = field(metadata={"help": "Folder or Hub name of an OmniFusion model with its processor."})
    stage: Literal["pretrain", "finetune", "lora"] = field(metadata={"help": "What trains, see training/stages.py."})
    data_path: str = field(metadata={"help": "File, Hub id or mixture (.yaml), docs/data.md."})
    image_folder: str | None = field(default=None, metadata={"help": "Folder of the images; default: data_path's."})
    max_length: int | None = field(default=None, metadata={"help": "Most tokens per sample, images included."})
    packing: bool = field(default=False, metadata={"help": "Rows of max_length hold several samples, not padding."})
    on_bad_sample: BadSamplePolicy = field(
        default="error", metadata={"help": "skip: pass broken samples over, count them in the log."}
    )
    conversation_format: ConversationFormat = field(
        default="llava", metadata={"help": "v1.1 trains as the authors' release did: <image> is text, no EOS."}
    )
    optimizer: Literal["muon"] | None = field(
        default=None, metadata={"help": "muon: training/muon.py; default: TrainingArguments' own `optim`."}
    )
    global_batch_size: int | None = field(
        default=None, metadata={"help": "Samples per step over all devices; gradient_accumulation_steps follow."}
    )
    vision_tuning: VisionTuning = field(default="frozen", metadata={"help": "How the encoders train, in any stage."})
    vision_learning_rate: float | None = field(default=None, metadata={"help": "Default: learning_rate."})
    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the adapter and, where the LLM is not trained whole, special-token rows."}
    )
    lora_rank: int = field(default=LoraSettings.rank, metadata={"help": "Rank of LoRA's two factors."})
    lora_alpha: int = field(default=LoraSettings.alpha, metadata={"help": "Their product counts alpha / rank times."})
    lora_dropout: float = field(default=LoraSettings.dropout, metadata={"help": "Dropout in front of LoRA's factors."})
    cache_vision_features: str | None = field(
        default=None, metadata={"help": "Folder that keeps the frozen encoders' features; None: compute each time."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "As in from_pretrained: sdpa, eager, …"})


# transformers 5.23 renamed these; a recipe may use either name under any version.
RENAMED = {f"gradient_checkpointing{end}": f"activation_checkpointing{end}" for end in ("", "_kwargs")}
if "activation_checkpointing" in TrainingArguments.__dataclass_fields__:
    CHECKPOINTING = RENAMED
else:
    CHECKPOINTING = {new: old for old, new in RENAMED.items()}


def parse_recipe(recipe: str, overrides: Sequence[str] = ()) -> tuple[ModelDataArguments, TrainingArguments]:
    """Reads a YAML recipe; `overrides` are `key=value` strings that win over it.

    Raises `ValueError` for an unknown key, a missing one or a value of the wrong type, and names it.
    """
    given = read_yaml(read_text(recipe), recipe)
    if not isinstance(given, dict):
        raise ValueError(f"{recipe} must hold `key: value` lines, got {type(given).__name__}.")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"`{override}` is not an override; write key=value.")
        given[key] = read_yaml(value, override)
    kinds = (ModelDataArguments, TrainingArguments)
    given = {CHECKPOINTING.get(key, key): value for key, value in given.items()}
    _check_keys(given, {entry.name for kind in kinds for entry in fields(kind)})
    given |= accumulation(given, processes=int(os.environ.get("WORLD_SIZE", 1)))
    # As command-line words, not parse_yaml_file: YAML reads 1e-3 as text, the dataclass knows that it is a float.
    parser = HfArgumentParser(kinds, allow_abbrev=False)
    parser.error = _raise_error
    lists = {entry.name for kind in kinds for entry in fields(kind) if "list" in str(entry.type)}
    words = [word for key, value in given.items() for word in _words(key, value, takes_list=key in lists)]
    model_data, args = parser.parse_args_into_dataclasses(args=words)
    _check_taken(args)
    return model_data, args


def _check_keys(given: dict, known: set[str]):
    for key in given:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else "docs/training.md says which fields there are."
            raise ValueError(f"unknown key `{key}`; {hint}")


def accumulation(given: dict, processes: int) -> dict[str, int]:
    """`gradient_accumulation_steps` that make a recipe's `global_batch_size` on so many processes, where it has one.

    Early, from the recipe itself: DeepSpeed reads these steps when TrainingArguments are made.
    """
    total, each = given.get("global_batch_size"), given.get("per_device_train_batch_size")
    if total is None:
        return {}
    each = TrainingArguments.per_device_train_batch_size if each is None else each
    if given.get("gradient_accumulation_steps") is not None:
        raise ValueError("give global_batch_size or gradient_accumulation_steps, not both; null takes one back.")
    if not all(isinstance(number, int) and number > 0 for number in (total, each)):
        raise ValueError(f"global_batch_size={total}, per_device_train_batch_size={each}: give whole numbers above 0.")
    if total % (each * processes):
        raise ValueError(
            f"global_batch_size {total} is no multiple of per_device_train_batch_size {each} x {processes} "
            "processes; change one of the three."
        )
    return {"gradient_accumulation_steps": total // (each * processes)}


def describe_batch(model_data: ModelDataArguments, args: TrainingArguments) -> str:
    """The global batch and its factors. Raises `ValueError` where it is not the one that the recipe asks for."""
    total = global_batch(args)
    if model_data.global_batch_size not in (None, total):
        raise ValueError(
            f"global_batch_size is {model_data.global_batch_size}, but this one process drives {args.n_gpu} devices "
            f"and makes it {total}: start one process per device, `torchrun --nproc-per-node {args.n_gpu} …`."
        )
    factors = (args.train_batch_size, args.world_size, args.gradient_accumulation_steps)
    return f"global batch {total} = " + "{} per process x {} processes x {} steps of accumulation".format(*factors)


def _raise_error(message: str):
    """In the place of argparse's own, which prints 150 fields and exits."""
    raise ValueError(message.replace("--", ""))


def _check_taken(args: TrainingArguments):
    """Raises `ValueError` for fields of TrainingArguments that would do something else than they say here."""
    refused = {
        "auto_find_batch_size": (False, "the global batch would no longer be the recipe's"),
        "eval_strategy": ("no", "a recipe has no data to evaluate on; evaluate the checkpoints that it saves"),
    }
    for name, (only, reason) in refused.items():
        if getattr(args, name) != only:
            raise ValueError(f"{name} must stay {only}: {reason}.")


def check_smoothing(args: TrainingArguments, config: OmniFusionConfig):
    """Raises `ValueError` where smoothed labels would give another loss than they say."""
    if args.label_smoothing_factor and config.predicted_vocab_size is not None:
        raise ValueError(
            "label_smoothing_factor spreads over the whole vocabulary, of which this model predicts the first "
            f"{config.predicted_vocab_size} tokens (predicted_vocab_size), so that the loss would be infinite; set 0."
        )
    knows_steps = "num_items_in_batch" in signature(LabelSmoother.__call__).parameters
    if args.label_smoothing_factor and not knows_steps and args.gradient_accumulation_steps * args.world_size > 1:
        raise ValueError(
            f"label_smoothing_factor: transformers {transformers.__version__} adds the losses of several batches or "
            "processes up where it should take their mean; update to 5.15, or take a step from one batch."
        )


def _words(key: str, value, takes_list: bool) -> list[str]:
    """One field as command-line words; null is the default."""
    if value is None:
        return []
    if isinstance(value, list) and takes_list:
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"]


def train(model_data: ModelDataArguments, args: TrainingArguments) -> dict:
    """Trains one stage; leaves model and processor in `args.output_dir`, returns what training_summary.json says."""
    settings, bad_samples = settings_of(model_data, args), BadSamples(model_data.on_bad_sample)
    check_reporting(args)
    processor = load_processor(model_data.model_name_or_path)
    dataset = read_data(model_data, args, processor, bad_samples)
    identity = identity_of(model_data, args, dataset, has_lora(model_data))
    checkpoint = checkpoint_to_resume(args, identity)
    samples = len(dataset) if isinstance(dataset, Sized) else None
    model, dtypes = load_model(model_data, args)
    check_smoothing(args, model.config)
    plans, batch = stage_plan(model), describe_batch(model_data, args)
    if args.process_index == 0:
        print(f"stage {model_data.stage}, {samples or 'streamed'} samples\n{format_plan(plans)}\n{batch}", flush=True)
        memory = memory_per_device(plans, args.world_size, is_sharded(args)) / 1e9
        print(f"{memory:.1f} GB per device, activations not counted, docs/training.md", flush=True)

    trainer = make_trainer(model_data, args, model, dataset, processor)
    trainer.add_callback(stop := SaveAndStop())
    trainer.add_callback(begin := Begin(trainer, identity))
    speed = watch(trainer, processor.image_token_id)
    spread_weights(model, args)
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint)
    stop.leave_if_stopped(trainer.state)
    if begin.finished is not None:
        return begin.finished
    if not trainer.state.global_step:
        raise ValueError("not one step was made: fewer samples than a batch takes, or no epochs; nothing was saved.")
    seconds = time.monotonic() - start
    if not is_sharded(args):  # whose own views of the weights a cast would miss
        for name, parameter in model.named_parameters():
            in_table = name.replace("special_token_rows", "weight")
            parameter.data = parameter.data.to(dtypes.get(in_table, parameter.dtype))
    trainer.save_model()
    summary = settings | summarise(trainer, plans, samples, seconds) | speed.summary()
    summary["skipped_samples"] = bad_samples.count
    if trainer.is_world_process_zero():
        plot_loss(trainer.state.log_history, Path(args.output_dir))
        write_whole(Path(args.output_dir) / SUMMARY, json.dumps(summary, indent=2))
    return summary


def load_model(model_data: ModelDataArguments, args: TrainingArguments) -> tuple[nn.Module, dict[str, torch.dtype]]:
    """The model, ready for its stage, and the dtypes that its weights had before."""
    name = model_data.model_name_or_path
    with whole_weights(args):
        with friendly_load_errors(name):
            model = AutoModelForImageTextToText.from_pretrained(
                name, attn_implementation=model_data.attn_implementation
            )
        parts = parts_of_stage(model_data.stage, model_data.vision_tuning)
        check_sharding(parts, model.config.tie_word_embeddings, args)
        model.skip_logits = True
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        set_seed(args.seed)  # LoRA's factors start at random
        lora = LoraSettings(model_data.lora_rank, model_data.lora_alpha, model_data.lora_dropout)
        return apply_stage(model, model_data.stage, model_data.vision_tuning, lora), dtypes


def make_trainer(
    model_data: ModelDataArguments,
    args: TrainingArguments,
    model: nn.Module,
    dataset: Dataset | IterableDataset,
    processor: OmniFusionProcessor,
) -> Trainer:
    """transformers' own Trainer with this recipe's data, batches and optimiser."""
    if model_data.cache_vision_features:
        folder = model_data.cache_vision_features
        dataset = cached_dataset(dataset, model, processor.image_processor, folder, args)
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False  # the model uses all of them, images or not
    args.remove_unused_columns = False  # they are the encoder's, not the model's
    pad = processor.tokenizer.pad_token_id
    return Trainer(
        model=model,
        args=args,
        train_dataset=group_by_length(dataset, processor, args),
        data_collator=(
            packing_collator(model, pad, model_data.max_length) if model_data.packing else PaddingCollator(pad)
        ),
        processing_class=processor,  # saved beside every checkpoint
        optimizer_cls_and_kwargs=optimizer_for(model_data.optimizer, args, rates_of(model_data)),
    )


def load_processor(name: str) -> OmniFusionProcessor:
    with friendly_load_errors(name):
        adapter = find_adapter_config_file(name)
        processor = AutoProcessor.from_pretrained(name) if adapter is None else None
    if adapter is not None:
        raise ValueError(f"{name} holds LoRA weights only; start from what `omnifusion merge {name} -o DIR` makes.")
    if not isinstance(processor, OmniFusionProcessor):
        raise ValueError(f"{name} is no OmniFusion model, its processor is a {type(processor).__name__}.")
    return processor


def read_data(
    model_data: ModelDataArguments, args: TrainingArguments, processor: OmniFusionProcessor, bad_samples: BadSamples
) -> Dataset | IterableDataset:
    """The recipe's data as encoded samples."""
    source = Source(model_data.data_path, model_data.image_folder, conversation_format=model_data.conversation_format)
    samples = load_data(source, processor.image_processor.max_image_pixels, order_seed(args), bad_samples)
    if isinstance(samples, IterableDataset):
        args.accelerator_config.dispatch_batches = False  # it would cut a batch's views by the number of samples
    append_eos = model_data.conversation_format != "v1.1"
    return encode(samples, ConversationEncoder(processor, model_data.max_length, append_eos), bad_samples)


def rates_of(model_data: ModelDataArguments) -> dict[str, float | None]:
    """Learning rates of single parts; special-token rows have the adapter's where they are trained on their own."""
    rates = {"multi_modal_projector": model_data.projector_learning_rate}
    if "special_token_rows" in STAGES[model_data.stage]:
        rates["special_token_rows"] = model_data.projector_learning_rate
    return rates | {"vision_tower": model_data.vision_learning_rate}


def has_lora(model_data: ModelDataArguments) -> bool:
    return "lora" in parts_of_stage(model_data.stage, model_data.vision_tuning).values()


def settings_of(model_data: ModelDataArguments, args: TrainingArguments) -> dict:
    """What a reader of the model card asks first; paths are named by their last part alone."""
    return {
        "stage": model_data.stage,
        "started_from": Path(model_data.model_name_or_path).name,
        "data": Path(model_data.data_path).name,
        "optimizer": model_data.optimizer or getattr(args.optim, "value", args.optim),
        "learning_rate": args.learning_rate,
        "projector_learning_rate": model_data.projector_learning_rate,
        "vision_tuning": model_data.vision_tuning,
        "vision_learning_rate": model_data.vision_learning_rate,
        "lora_rank": model_data.lora_rank if has_lora(model_data) else None,
        "lora_alpha": model_data.lora_alpha if has_lora(model_data) else None,
        "lr_scheduler": getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type),
        "weight_decay": args.weight_decay,
        "global_batch": global_batch(args),
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "data_seed": order_seed(args),
        "max_length": model_data.max_length,
        "packing": model_data.packing,
    }


def summarise(trainer: Trainer, plans: list[PartPlan], samples: int | None, seconds: float) -> dict:
    """The figures of a finished run. `final_loss` is the last logged one, `seconds` are of this process alone."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": trainer.state.global_step,
        "final_loss": losses[-1] if losses else None,
        "samples": samples,
        "seconds": round(seconds, 1),
        "trained_parameters": {plan.part: plan.trained for plan in plans if plan.trained},
    }
