# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""LoRA by PEFT: which layers get it, what a checkpoint holds, and how to merge it into a plain model folder."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.pytorch_utils import Conv1D

from ..hub import LORA
from ..inference import load
from ..io import SUMMARY, check_new, friendly_load_errors, staged_folder
from ..model.modeling_omnifusion import OmniFusionForConditionalGeneration
from .modules import path_of, restore_dtypes


if TYPE_CHECKING:
    from peft import PeftModel


LoraVariant = Literal["rslora", "dora"]


@dataclass
class LoraSettings:
    """Rank of the two factors, alpha (their product is scaled by alpha / rank) and dropout of their input.

    The defaults are LLaVA-1.5's, because the paper gives none.

    modules: names of the layers, such as q_proj; empty: all linear layers of a part.
    variant: rslora scales by alpha / √rank, dora trains the length of each weight vector too.
    weights: the folder of an earlier run on the same model, whose weights this one begins with.
    """

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05
    modules: tuple[str, ...] = ()
    variant: LoraVariant | None = None
    weights: str | None = None


def add_lora(model: OmniFusionForConditionalGeneration, parts: dict[str, str], settings: LoraSettings) -> "PeftModel":
    """Wraps the model so that linear layers of `"lora"` parts train by LoRA, and `"full"` parts as copies.

    PEFT then saves everything that trained: LoRA's factors, the adapter, the special tokens' rows. Raises `ValueError`
    for `settings.weights` of other settings or of another model.
    """
    peft = import_peft()
    whole = [part for part, how in parts.items() if how == "full" and part != "special_token_rows"]
    for part in whole:
        # the model reads its adapter's dtype, and PEFT's wrapper gives that of the frozen original
        model.get_submodule(path_of(model, part)).float()
    if Path(model.name_or_path).is_dir():
        model.name_or_path = str(Path(model.name_or_path).resolve())  # checkpoints then load from any folder
    table = model.get_input_embeddings()
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.variant == "rslora",
        use_dora=settings.variant == "dora",
        target_modules=linear_layers(model, [part for part, how in parts.items() if how == "lora"], settings.modules),
        modules_to_save=[path_of(model, part) for part in whole],
        trainable_token_indices={path_of(model, table): list(model.config.special_token_ids)},
        task_type="CAUSAL_LM",
    )
    wrapped = peft.get_peft_model(model, config)
    if settings.weights:
        begin_with(peft, wrapped, settings.weights)
    return wrapped


def begin_with(peft, model: "PeftModel", folder: str):
    """Gives `model` the weights of an earlier run."""
    earlier, config = peft.PeftConfig.from_pretrained(folder), model.active_peft_config
    for name in ("r", "lora_alpha", "use_rslora", "use_dora"):
        was, now = getattr(earlier, name), getattr(config, name)
        if was != now:
            raise ValueError(f"lora_weights: {folder} has {name} {was}, this run {now}; give the same settings.")
    weights = peft.load_peft_weights(folder, device="cpu")
    if odd := weights.keys() ^ peft.get_peft_model_state_dict(model).keys():
        raise ValueError(f"lora_weights: {folder} is of another model or other layers, as {min(odd)} shows.")
    with friendly_load_errors(folder):  # of other sizes
        peft.set_peft_model_state_dict(model, weights)


def check_lora(folder: str):
    """Raises `ValueError` for a folder without LoRA weights."""
    if not (Path(folder) / LORA).is_file():
        raise ValueError(f"{folder} is not a folder of a LoRA run: it holds no {LORA}.")


def linear_layers(model: nn.Module, parts: Sequence[str], names: Sequence[str] = ()) -> str:
    """Regular expression for the linear layers of these parts, or those of these names; suffixes such as `q_proj`
    would match other parts too.

    Raises `ValueError` for a name that no linear layer has, and for a part without a layer of these names.
    """
    layers = {part: linear_names(model.get_submodule(path_of(model, part))) for part in parts}
    known = set().union(*layers.values())
    if unknown := set(names) - known:
        raise ValueError(f"lora_target_modules: no linear layer is named {sorted(unknown)}, but {sorted(known)}.")
    for part, there in layers.items():
        if names and not there & set(names):
            raise ValueError(f"lora_target_modules: {part} has none of {sorted(names)}, but {sorted(there)}.")
    chosen = {part: sorted(there & set(names or there)) for part, there in layers.items()}
    return "|".join(rf"{re.escape(path_of(model, part))}\..*\b({'|'.join(some)})" for part, some in chosen.items())


def linear_names(part: nn.Module) -> set[str]:
    layers = (name for name, module in part.named_modules() if isinstance(module, (nn.Linear, Conv1D)))
    return {name.rpartition(".")[-1] for name in layers}


def load_lora(peft, model: nn.Module, folder: str, base: str) -> nn.Module:
    """The model with a folder's LoRA weights. Raises `ValueError` unless there is a place for each and each is there:
    PEFT passes over the others."""
    given = peft.load_peft_weights(folder, device="cpu")
    try:
        wrapped = peft.PeftModel.from_pretrained(model, folder)
        odd = given.keys() ^ peft.get_peft_model_state_dict(wrapped).keys()
    except KeyError as error:
        odd = {error.args[0]}
    if odd:
        raise ValueError(f"its weights are not those of {base}, as {min(odd)} shows; give the right --base.")
    return wrapped


def merge(folder: str, output: str, base: str | None = None, quantization: Literal["4bit", "8bit"] | None = None):
    """Writes a plain model folder with its processor, in which LoRA's products are added to the weights.

    Args:
        folder: a checkpoint or the final folder of a LoRA run.
        output: the folder to make. It appears only when it is complete.
        base: the model that the run started from, if it has moved since.
        quantization: of the written LLM, by bitsandbytes; the sum is in full precision.

    Raises `ValueError` for a folder without LoRA weights and for an output that exists.
    """
    peft = import_peft()
    if not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder}.")
    check_lora(folder)
    check_new(output)
    with friendly_load_errors(folder):
        processor = AutoProcessor.from_pretrained(folder)
        base = base or peft.PeftConfig.from_pretrained(folder).base_model_name_or_path
    try:
        with friendly_load_errors(base):
            model = AutoModelForImageTextToText.from_pretrained(base)
    except ValueError as error:
        raise ValueError(f"cannot load the model that {folder} starts from, `{base}`; give --base. {error}") from None
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    with friendly_load_errors(folder):
        merged = load_lora(peft, model, folder, base).merge_and_unload(progressbar=True, safe_merge=True)
    restore_dtypes(merged, dtypes)
    with staged_folder(output, replace=False) as staged:
        merged.save_pretrained(staged)
        processor.save_pretrained(staged)
        if (Path(folder) / SUMMARY).exists():
            shutil.copy(Path(folder) / SUMMARY, staged)
        if quantization:
            quantised, _ = load(str(staged), quantization=quantization, dtype="auto")
            for file in Path(staged).glob("model*.safetensors*"):
                file.unlink()
            quantised.save_pretrained(staged)


def import_peft():
    """The module peft. Raises `ValueError` with the command that installs it."""
    try:
        import peft
    except ImportError:
        raise ValueError("LoRA needs PEFT: pip install 'omnifusion_hf[lora]'.") from None
    return peft
