# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The fields of a recipe: [`ModelDataArguments`] and every field of transformers' TrainingArguments."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Literal, get_type_hints

import transformers
from packaging.version import Version
from transformers import HfArgumentParser, TrainingArguments

from ..io import named, read_text, read_yaml
from ..model.configuration_omnifusion import OmniFusionConfig
from .conversations import BadSamplePolicy, ConversationFormat
from .lora import LoraSettings, LoraVariant, check_lora
from .mixture import Source
from .stages import STAGES, VisionTuning, parts_of_stage


@dataclass
class ModelDataArguments:
    """The model, its data and the stage; the other fields of a recipe are those of TrainingArguments.

    Raises `ValueError` for `lora_weights` that hold none, or in a stage without LoRA.
    """

    model_name_or_path: str = field(metadata={"help": "Folder or Hub name of an OmniFusion model with its processor."})
    stage: Literal["pretrain", "finetune", "lora"] = field(metadata={"help": "The parts to train, see stages.py."})
    data_path: str = field(metadata={"help": "File, Hub id or mixture (.yaml), docs/data.md."})
    image_folder: str | None = field(default=None, metadata={"help": "Folder of the images; default: data_path's."})
    max_length: int | None = field(default=None, metadata={"help": "Most tokens per sample, images included."})
    packing: bool = field(default=False, metadata={"help": "Packs several samples into a row of max_length tokens."})
    on_bad_sample: BadSamplePolicy = field(
        default="error", metadata={"help": "skip: skips broken samples and counts them in the log."}
    )
    conversation_format: ConversationFormat = field(
        default="llava", metadata={"help": "v1.1 trains as the authors' release did: <image> is text, no EOS."}
    )
    optimizer: Literal["muon"] | None = field(
        default=None, metadata={"help": "muon: training/optimizer.py; default: `optim` of TrainingArguments."}
    )
    global_batch_size: int | None = field(
        default=None, metadata={"help": "Samples per step over all devices; sets gradient_accumulation_steps."}
    )
    vision_tuning: VisionTuning = field(default="frozen", metadata={"help": "How the encoders train, in any stage."})
    vision_learning_rate: float | None = field(default=None, metadata={"help": "Default: learning_rate."})
    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the adapter and, unless the whole LLM trains, of special-token rows."}
    )
    lora_rank: int = field(default=LoraSettings.rank, metadata={"help": "Rank of LoRA's two factors."})
    lora_alpha: int = field(default=LoraSettings.alpha, metadata={"help": "LoRA is scaled by alpha / rank."})
    lora_dropout: float = field(default=LoraSettings.dropout, metadata={"help": "Dropout of the input of LoRA."})
    lora_target_modules: list[str] = field(
        default_factory=list, metadata={"help": "Names of the layers that get LoRA; default: all linear layers."}
    )
    lora_variant: LoraVariant | None = field(default=None, metadata={"help": "rslora or dora, as in PEFT."})
    lora_weights: str | None = field(
        default=None, metadata={"help": "Folder of an earlier LoRA run on the same model, to begin with its weights."}
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: the frozen LLM in 4 bits by bitsandbytes."})
    eval_data_path: str | None = field(default=None, metadata={"help": "Samples to evaluate on, as data_path."})
    eval_image_folder: str | None = field(default=None, metadata={"help": "Default: eval_data_path's folder."})
    eval_share: float | None = field(default=None, metadata={"help": "Share of the samples that is held out instead."})
    eval_metrics: list[str] = field(
        default_factory=list,
        metadata={"help": "Scores of generated answers: exact_match, vqa_accuracy, anls, edit_distance."},
    )
    eval_answers: int = field(default=100, metadata={"help": "Questions that are answered for eval_metrics."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stops after so many evaluations without a better one."}
    )
    cache_vision_features: str | None = field(
        default=None, metadata={"help": "Folder to keep the frozen encoders' features in; default: no cache."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "As in from_pretrained: sdpa, eager, …"})

    def __post_init__(self):
        if not self.lora_weights:
            return
        with named("lora_weights"):
            check_lora(self.lora_weights)
            if "lora" not in self.parts.values():
                raise ValueError(f"stage {self.stage} trains without LoRA; use stage: lora.")

    @property
    def parts(self) -> dict[str, str]:
        """The parts that train, and how."""
        return parts_of_stage(self.stage, self.vision_tuning)

    @property
    def lora(self) -> LoraSettings:
        modules, variant = tuple(self.lora_target_modules), self.lora_variant
        return LoraSettings(self.lora_rank, self.lora_alpha, self.lora_dropout, modules, variant, self.lora_weights)

    @property
    def source(self) -> Source:
        return Source(self.data_path, self.image_folder, conversation_format=self.conversation_format)

    @property
    def learning_rates(self) -> dict[str, float]:
        """Those of single parts. Special-token rows have the adapter's if they are trained on their own."""
        rates = {"multi_modal_projector": self.projector_learning_rate, "vision_tower": self.vision_learning_rate}
        if "special_token_rows" in STAGES[self.stage]:
            rates["special_token_rows"] = self.projector_learning_rate
        return {part: rate for part, rate in rates.items() if rate is not None}


@dataclass
class OmniFusionTrainingArguments(TrainingArguments):
    """TrainingArguments that suit OmniFusion's model and data.

    Raises `ValueError` for a field that would have another effect here than its documentation says.
    """

    remove_unused_columns: bool = False  # they are the encoder's, not the model's
    ddp_find_unused_parameters: bool | None = False  # the model uses all of them, with images or without
    restore_callback_states_from_checkpoint: bool = True  # how long early stopping has waited

    def __post_init__(self):
        if "edit_distance" in str(self.metric_for_best_model) and self.greater_is_better is None:
            self.greater_is_better = False
        super().__post_init__()
        self.accelerator_config.dispatch_batches = False  # it would cut a batch's views by the number of samples
        required = {
            "auto_find_batch_size": (False, "it would change the recipe's global batch"),
            "remove_unused_columns": (False, "the encoder uses these columns"),
        }
        for name, (value, reason) in required.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} must stay {value}: {reason}.")
        if self.train_sampling_strategy == "batch_rebalance":
            raise ValueError(
                "train_sampling_strategy: batch_rebalance decodes all samples in advance; use group_by_length or "
                "packing."
            )

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step, over all devices."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def order_seed(self) -> int:
        """The seed of the order of the data."""
        return self.seed if self.data_seed is None else self.data_seed


class RecipeParser(HfArgumentParser):
    def error(self, message: str):
        """argparse would print all fields and exit."""
        raise ValueError(message.replace("--", ""))


# transformers 5.23 renamed these; a recipe may use either name with any version.
RENAMED = {f"gradient_checkpointing{end}": f"activation_checkpointing{end}" for end in ("", "_kwargs")}
if "activation_checkpointing" not in {entry.name for entry in fields(TrainingArguments)}:
    RENAMED = {new: old for old, new in RENAMED.items()}


def parse_recipe(recipe: str, overrides: Sequence[str] = ()) -> tuple[ModelDataArguments, OmniFusionTrainingArguments]:
    """Reads a YAML recipe; `overrides` are `key=value` strings that replace its values.

    Raises `ValueError` that names an unknown key, a missing one or a value of the wrong type.
    """
    given = read_yaml(read_text(recipe), recipe)
    if not isinstance(given, dict):
        raise ValueError(f"{recipe} must hold `key: value` lines, got {type(given).__name__}.")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"`{override}` is not an override; write key=value.")
        given[key] = read_yaml(value, override)
    kinds = (ModelDataArguments, OmniFusionTrainingArguments)
    given = {RENAMED.get(key, key): value for key, value in given.items()}
    known = {entry.name: entry for kind in kinds for entry in fields(kind)}
    for key in given.keys() - known.keys():
        close = get_close_matches(str(key), known, n=1)
        hint = f"did you mean `{close[0]}`?" if close else "docs/training.md lists the fields."
        raise ValueError(f"unknown key `{key}`; {hint}")
    given |= accumulation(given, processes=int(os.environ.get("WORLD_SIZE", 1)))
    # Command-line words keep the types of the fields: YAML reads 1e-3 as text, the dataclass as a float. Lists are not
    # passed so: the parser takes no empty one, and only one word for a field that may also be a text.
    parser, types = RecipeParser(kinds, allow_abbrev=False), get_type_hints(kinds[0]) | get_type_hints(kinds[1])
    lists = {key: value for key, value in given.items() if isinstance(value, list) and "list" in str(types[key])}
    parser.set_defaults(**{key: list(map(str, value)) for key, value in lists.items()})
    words = [_word(key, value) for key, value in given.items() if value is not None and key not in lists]
    return parser.parse_args_into_dataclasses(args=words)


def _word(key: str, value) -> str:
    return f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"


def accumulation(given: dict, processes: int) -> dict[str, int]:
    """`gradient_accumulation_steps` that give a recipe's `global_batch_size`, if it has one, on these processes.

    Computed from the recipe, because DeepSpeed reads the steps when TrainingArguments are made.
    """
    total, each = given.get("global_batch_size"), given.get("per_device_train_batch_size")
    if total is None:
        return {}
    each = TrainingArguments.per_device_train_batch_size if each is None else each
    if given.get("gradient_accumulation_steps") is not None:
        raise ValueError("give global_batch_size or gradient_accumulation_steps, not both; null unsets one.")
    if not all(isinstance(number, int) and number > 0 for number in (total, each)):
        raise ValueError(f"global_batch_size={total}, per_device_train_batch_size={each}: give integers above 0.")
    if total % (each * processes):
        raise ValueError(
            f"global_batch_size {total} is not a multiple of per_device_train_batch_size {each} x {processes} "
            "processes; change one of the three."
        )
    return {"gradient_accumulation_steps": total // (each * processes)}


def describe_batch(args: OmniFusionTrainingArguments) -> str:
    """The global batch and its factors. Raises `ValueError` for several devices in one process."""
    if args.n_gpu > 1:  # DataParallel would cut the views of a batch anywhere
        raise ValueError(
            f"this one process drives {args.n_gpu} devices: start one process per device, "
            f"`torchrun --nproc-per-node {args.n_gpu} …`, or hide the others, `CUDA_VISIBLE_DEVICES=0`."
        )
    return (
        f"global batch {args.global_batch} = {args.train_batch_size} per process x {args.world_size} processes x "
        f"{args.gradient_accumulation_steps} steps of accumulation"
    )


def check_smoothing(args: OmniFusionTrainingArguments, config: OmniFusionConfig):
    """Raises `ValueError` if label smoothing would give a wrong loss."""
    if args.label_smoothing_factor and config.predicted_vocab_size is not None:
        raise ValueError(
            "label_smoothing_factor spreads over the whole vocabulary, but this model predicts only the first "
            f"{config.predicted_vocab_size} tokens (predicted_vocab_size), so the loss would be infinite; set 0."
        )
    sums_batches = Version(transformers.__version__) < Version("5.15")
    if args.label_smoothing_factor and sums_batches and args.gradient_accumulation_steps * args.world_size > 1:
        raise ValueError(
            f"label_smoothing_factor: transformers {transformers.__version__} adds the losses of several batches or "
            "processes instead of averaging them; update to 5.15, or take each step from one batch."
        )
