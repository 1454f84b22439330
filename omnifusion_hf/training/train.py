# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""`omnifusion train`: from a recipe to a trained model folder."""

import json
import time
from collections.abc import Sized
from pathlib import Path

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    EarlyStoppingCallback,
    set_seed,
)

from ..hub import LORA, check_rights
from ..inference import bitsandbytes_config
from ..io import SUMMARY, friendly_load_errors, read_json, read_text, write_whole
from ..model.processing_omnifusion import OmniFusionProcessor
from .arguments import ModelDataArguments, OmniFusionTrainingArguments, check_smoothing, describe_batch
from .callbacks import (
    IdentityCallback,
    SaveAndStop,
    check_reporting,
    checkpoint_to_resume,
    has_stopped_early,
    plot_loss,
)
from .conversations import BadSamples
from .feature_cache import cached_dataset
from .identity import identity_of
from .loss import loss_of_answers
from .mixture import load_data
from .modules import restore_dtypes
from .preprocessing import ConversationEncoder, encode
from .sharding import check_sharding, is_sharded, memory_per_device, spread_weights, whole_weights
from .stages import PartPlan, apply_stage, format_plan, stage_plan
from .trainer import OmniFusionTrainer
from .validation import Validation, held_out_data, without_broken


def train(recipe: ModelDataArguments, args: OmniFusionTrainingArguments) -> dict:
    """Trains one stage. Leaves model and processor in `args.output_dir`; returns the content of the summary."""
    settings, bad_samples = settings_of(recipe, args), BadSamples(recipe.on_bad_sample)
    check_reporting(args)
    if args.push_to_hub and args.process_index == 0:
        check_rights(HfApi(token=args.hub_token), args.hub_model_id or Path(args.output_dir).name)
    processor = load_processor(recipe.model_name_or_path)
    conversations = load_data(recipe.source, args.order_seed, bad_samples)
    conversations, held_out = held_out_data(recipe, args, conversations, bad_samples)
    identity = identity_of(recipe, args, conversations, has_lora(recipe))
    checkpoint = checkpoint_to_resume(args, identity)
    model, dtypes = load_model(recipe, args)
    check_smoothing(args, model.config)
    plans, samples = stage_plan(model), len(conversations) if isinstance(conversations, Sized) else None
    announce(recipe, args, plans, samples)

    encoder = ConversationEncoder(processor, recipe.max_length, append_eos=recipe.conversation_format != "v1.1")
    dataset = encode(conversations, encoder, bad_samples)
    if recipe.cache_vision_features:
        folder = recipe.cache_vision_features
        dataset = cached_dataset(dataset, model, processor.image_processor, folder, args)
    validation = None
    if held_out is not None:
        good = without_broken(held_out, encoder, bad_samples)
        validation = Validation(good, encoder, recipe.eval_metrics, recipe.eval_answers)
    stop, begin = SaveAndStop(), IdentityCallback(identity)
    callbacks = [stop, begin]
    if recipe.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(recipe.early_stopping_patience))
    trainer = OmniFusionTrainer(model, args, recipe, dataset, processor, callbacks=callbacks, validation=validation)
    spread_weights(model, args)
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint)
    stop.leave_if_stopped(trainer.state)
    path = Path(args.output_dir) / SUMMARY
    if begin.complete and path.is_file():
        return read_json(read_text(path), str(path))
    if not trainer.state.global_step:
        raise ValueError("no step was made: fewer samples than a batch takes, or no epochs; nothing was saved.")
    seconds = time.monotonic() - start
    if not is_sharded(args):  # a cast would miss the shards
        restore_dtypes(model, dtypes)
    trainer.save_model()
    summary = settings | summarise(trainer, plans, samples, seconds) | trainer.speed.summary()
    summary["skipped_samples"] = bad_samples.count
    if trainer.is_world_process_zero():
        plot_loss(trainer.state.log_history, path.parent)
        write_whole(path, json.dumps(summary, indent=2))
    return summary


def load_processor(name: str) -> OmniFusionProcessor:
    """Raises `ValueError` for a folder that holds LoRA weights only, and for another model."""
    with friendly_load_errors(name):
        processor = AutoProcessor.from_pretrained(name)
    if holds_lora(name):
        raise ValueError(
            f"{name} holds LoRA weights only; start from its base model with lora_weights: {name}, or from the output "
            f"of `omnifusion merge {name} -o DIR`."
        )
    if not isinstance(processor, OmniFusionProcessor):
        raise ValueError(f"{name} is not an OmniFusion model, its processor is a {type(processor).__name__}.")
    return processor


def holds_lora(name: str) -> bool:
    """Whether a folder or a repository of the Hub holds weights of PEFT."""
    if Path(name).is_dir():
        return (Path(name) / LORA).is_file()
    try:
        return bool(hf_hub_download(name, LORA))
    except EntryNotFoundError:  # offline: not in the cache
        return False


def load_model(
    recipe: ModelDataArguments, args: OmniFusionTrainingArguments
) -> tuple[nn.Module, dict[str, torch.dtype]]:
    """The model, prepared for its stage, and the earlier dtypes of its weights."""
    name = recipe.model_name_or_path
    with whole_weights(args):
        with friendly_load_errors(name):
            model = AutoModelForImageTextToText.from_pretrained(
                name,
                attn_implementation=recipe.attn_implementation,
                quantization_config=quantization_of(recipe, args.device),
            )
        check_sharding(recipe.parts, model.config.tie_word_embeddings, args)
        model.loss_from_states = loss_of_answers
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        set_seed(args.seed)  # LoRA's factors are random
        return apply_stage(model, recipe.stage, recipe.vision_tuning, recipe.lora), dtypes


def quantization_of(recipe: ModelDataArguments, device: torch.device) -> BitsAndBytesConfig | None:
    """That of QLoRA (arXiv 2305.14314). Raises `ValueError` for a stage without LoRA, which Trainer refuses, and for
    one that trains the LLM whole."""
    if not recipe.load_in_4bit:
        return None
    whole = recipe.parts.get("language_model") == "full"
    if whole or not has_lora(recipe):
        what = "trains the LLM whole" if whole else "trains without LoRA"
        raise ValueError(f"load_in_4bit: stage {recipe.stage} {what}; use stage: lora.")
    config = bitsandbytes_config("4bit", str(device), "bfloat16")
    config.bnb_4bit_use_double_quant = True
    return config


def announce(
    recipe: ModelDataArguments, args: OmniFusionTrainingArguments, plans: list[PartPlan], samples: int | None
):
    """Prints the stage table, the batch and the memory that a run needs."""
    batch = describe_batch(args)
    if args.process_index == 0:
        memory = memory_per_device(plans, args.world_size, is_sharded(args)) / 1e9
        print(f"stage {recipe.stage}, {samples or 'streamed'} samples\n{format_plan(plans)}\n{batch}", flush=True)
        print(f"{memory:.1f} GB per device, without activations, docs/training.md", flush=True)


def has_lora(recipe: ModelDataArguments) -> bool:
    return "lora" in recipe.parts.values()


def settings_of(recipe: ModelDataArguments, args: OmniFusionTrainingArguments) -> dict:
    """The settings that a model card shows. Of paths only the last part."""
    return {
        "stage": recipe.stage,
        "started_from": Path(recipe.model_name_or_path).name,
        "data": Path(recipe.data_path).name,
        "optimizer": recipe.optimizer or getattr(args.optim, "value", args.optim),
        "learning_rate": args.learning_rate,
        "projector_learning_rate": recipe.projector_learning_rate,
        "vision_tuning": recipe.vision_tuning,
        "vision_learning_rate": recipe.vision_learning_rate,
        "lora_rank": recipe.lora_rank if has_lora(recipe) else None,
        "lora_alpha": recipe.lora_alpha if has_lora(recipe) else None,
        "lr_scheduler": getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type),
        "weight_decay": args.weight_decay,
        "global_batch": args.global_batch,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "data_seed": args.order_seed,
        "max_length": recipe.max_length,
        "packing": recipe.packing,
    }


def summarise(trainer: OmniFusionTrainer, plans: list[PartPlan], samples: int | None, seconds: float) -> dict:
    """The figures of a finished run. `final_loss` is the last logged one, scores of evaluation are of the weights that
    are kept, `seconds` are of this process alone."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    kept = trainer.state.global_step if best is None else int(best.rpartition("-")[2])
    measured = [entry for entry in trainer.state.log_history if entry["step"] <= kept]
    return {
        "steps": trainer.state.global_step,
        "stopped_early": has_stopped_early(trainer.state) or None,
        "final_loss": losses[-1] if losses else None,
        **{name: value for entry in measured for name, value in entry.items() if "eval_" in name},
        "samples": samples,
        "seconds": round(seconds, 1),
        "trained_parameters": {plan.part: plan.trained for plan in plans if plan.trained},
    }
