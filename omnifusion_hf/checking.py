# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Are a model's weights all there, floats, finite and no others? transformers warns of gaps and casts the rest."""

from pathlib import Path

import torch
from safetensors import safe_open
from tqdm import tqdm
from transformers import PreTrainedModel

from .build.assemble import check_loaded


WHOLE_NUMBERS = ("I", "U", "BOOL")  # how safetensors' names of their types begin
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_weights(source: str | Path, model: PreTrainedModel, loading: dict):
    """Raises `ValueError` where weights are missing, of another shape, unknown, whole numbers in the files, NaN or
    infinite.

    Args:
        source: the folder or Hub id that the model was loaded from.
        loading: what `from_pretrained` said of that (`output_loading_info`).
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
            f"{source} has {len(unknown)} weights that its config.json knows no place for "
            f"({', '.join(unknown[:3])}, …); one of them belongs to another model."
        )
    weights = {name: weight for name, weight in model.state_dict().items() if _is_plain(weight)}
    for file in sorted(Path(source).glob("*.safetensors")):
        _check_are_floats(file, weights)
    for name, weight in tqdm(weights.items(), "checking", unit="weight", delay=2, leave=False, disable=None):
        if not torch.stack(torch.aminmax(weight)).isfinite().all():
            raise ValueError(f"{source}: {name} holds NaN or infinity; take an earlier checkpoint of the run.")


def _is_plain(weight: torch.Tensor) -> bool:
    """False for quantised weights, whose files hold whole numbers, and for buffers of whole numbers."""
    return type(weight) is torch.Tensor and weight.dtype in FLOATS and weight.numel() > 0 and not weight.is_meta


def _check_are_floats(file: Path, weights: dict[str, torch.Tensor]):
    """transformers casts whatever it finds."""
    with safe_open(file, framework="pt") as stored:
        for name in set(stored.keys()) & weights.keys():
            if (dtype := stored.get_slice(name).get_dtype()).startswith(WHOLE_NUMBERS):
                raise ValueError(f"{file}: {name} is stored as {dtype}, whole numbers; save it as floats.")
