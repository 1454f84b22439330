# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Checks that a model's weights are complete, floating-point and finite. transformers only warns of missing ones."""

from pathlib import Path

import torch
from safetensors import safe_open
from tqdm import tqdm
from transformers import PreTrainedModel

from .build.assemble import check_loaded


INTEGERS = ("I", "U", "BOOL")  # prefixes of safetensors' dtype names
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_weights(source: str | Path, model: PreTrainedModel, loading: dict):
    """Raises `ValueError` for weights that are missing, misshapen, unknown, stored as integers, NaN or infinite.

    Args:
        source: the folder or Hub id that the model was loaded from.
        loading: the `output_loading_info` of `from_pretrained`.
    """
    check_loaded(str(source), model, loading)
    if other := sorted(loading["mismatched_keys"]):
        name, stored, wanted = other[0]
        raise ValueError(
            f"{source}: {name} is {tuple(stored)} in the files, {tuple(wanted)} by config.json; one of them belongs "
            "to another model."
        )
    if unknown := sorted(loading["unexpected_keys"]):
        raise ValueError(
            f"{source} has {len(unknown)} weights that the model of its config.json lacks "
            f"({', '.join(unknown[:3])}, …); one of them belongs to another model."
        )
    weights = {name: weight for name, weight in model.state_dict().items() if _is_plain(weight)}
    for file in sorted(Path(source).glob("*.safetensors")):
        _check_are_floats(file, weights)
    for name, weight in tqdm(weights.items(), "checking", unit="weight", delay=2, leave=False, disable=None):
        if not torch.stack(torch.aminmax(weight)).isfinite().all():
            raise ValueError(f"{source}: {name} holds NaN or infinity; take an earlier checkpoint of the run.")


def _is_plain(weight: torch.Tensor) -> bool:
    """False for quantised weights, which are stored as integers, and for integer buffers."""
    return type(weight) is torch.Tensor and weight.dtype in FLOATS and weight.numel() > 0 and not weight.is_meta


def _check_are_floats(file: Path, weights: dict[str, torch.Tensor]):
    """Integers would be cast without a warning."""
    with safe_open(file, framework="pt") as stored:
        for name in set(stored.keys()) & weights.keys():
            if (dtype := stored.get_slice(name).get_dtype()).startswith(INTEGERS):
                raise ValueError(f"{file}: {name} is stored as {dtype}, an integer type; save it in a float dtype.")
