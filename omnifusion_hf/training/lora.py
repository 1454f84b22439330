# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""LoRA by PEFT: which layers get it, what is saved beside it, and the way back to a plain model folder."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.pytorch_utils import Conv1D

from ..io import SUMMARY, check_new, friendly_load_errors, staged_folder
from ..model.modeling_omnifusion import OmniFusionForConditionalGeneration


if TYPE_CHECKING:
    from peft import PeftModel


@dataclass
class LoraSettings:
    """Rank of the two factors, alpha (their product counts alpha / rank times) and dropout in front of them.

    The defaults are LLaVA-1.5's; the paper gives none.
    """

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05


def add_lora(model: OmniFusionForConditionalGeneration, parts: dict[str, str], settings: LoraSettings) -> "PeftModel":
    """Wraps the model so that its linear layers in `"lora"` parts train by LoRA, and `"full"` parts as copies.

    What PEFT saves is then all that trained: LoRA's factors, the adapter, the special tokens' rows.
    """
    peft = import_peft()
    whole = [part for part, how in parts.items() if how == "full" and part != "special_token_rows"]
    for part in whole:
        # the model asks its adapter for a dtype, and PEFT's wrapper answers with that of the frozen original
        model.get_submodule(path_of(model, part)).float()
    if Path(model.name_or_path).is_dir():
        model.name_or_path = str(Path(model.name_or_path).resolve())  # checkpoints name their base from anywhere
    table = model.get_input_embeddings()
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="|".join(linear_layers(model, part) for part, how in parts.items() if how == "lora"),
        modules_to_save=[path_of(model, part) for part in whole],
        trainable_token_indices={path_of(model, table): list(model.config.special_token_ids)},
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def linear_layers(model: nn.Module, part: str) -> str:
    """Regular expression for the linear layers of one part alone: suffixes such as `q_proj` also hit other parts."""
    path = path_of(model, part)
    layers = {
        name.rpartition(".")[-1]
        for name, module in model.get_submodule(path).named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    return rf"{re.escape(path)}\..*\b({'|'.join(sorted(layers))})"


def path_of(model: nn.Module, wanted: str | nn.Module) -> str:
    """The dotted name of a module, which may be given by the last piece of that name."""
    return next(
        name
        for name, module in model.named_modules()
        if module is wanted or (isinstance(wanted, str) and name.rpartition(".")[-1] == wanted)
    )


def merge(folder: str, output: str, base: str | None = None):
    """Writes one plain model folder, with its processor, in which LoRA's products are added to the weights.

    Args:
        folder: a checkpoint or the final folder of a LoRA run.
        output: the folder to make, whole or not at all.
        base: the model that the run started from, where it is no longer where the run found it.

    Raises `ValueError` for a folder without LoRA weights and for one to write that exists.
    """
    peft = import_peft()
    if not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder}.")
    if not (Path(folder) / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds no adapter_config.json: it is no folder of a LoRA run; nothing to merge.")
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
        merged = peft.PeftModel.from_pretrained(model, folder).merge_and_unload(progressbar=True, safe_merge=True)
    for name, parameter in merged.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    with staged_folder(output, replace=False) as staged:
        merged.save_pretrained(staged)
        processor.save_pretrained(staged)
        if (Path(folder) / SUMMARY).exists():
            shutil.copy(Path(folder) / SUMMARY, staged)


def import_peft():
    """The module peft. Raises `ValueError` that says how to install it."""
    try:
        import peft
    except ImportError:
        raise ValueError("LoRA needs PEFT: pip install 'omnifusion_hf[lora]'.") from None
    return peft
