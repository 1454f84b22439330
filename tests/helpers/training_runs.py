"""Training runs by recipe over tiny parts, and what they changed."""

from pathlib import Path

import conversations
import torch
from safetensors.torch import load_file

from omnifusion_hf.training.train import parse_recipe, train


def run(folder: Path, base: Path, **changes) -> dict:
    """Trains in `folder` and returns the summary."""
    folder.mkdir(exist_ok=True)
    return train(*parse_recipe(conversations.write_recipe(folder, base, **changes)))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: dict, after: dict) -> set[str]:
    assert set(before) == set(after)
    return {name for name in before if not torch.equal(before[name], after[name])}
