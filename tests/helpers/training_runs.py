"""Training runs by recipe over tiny parts, their logs, and what they changed."""

import json
from pathlib import Path

import conversations
import torch
from safetensors.torch import load_file

from omnifusion_hf.cli import main
from omnifusion_hf.training.arguments import parse_recipe
from omnifusion_hf.training.train import train


def run(folder: Path, base: Path, **changes) -> dict:
    """Trains in `folder` and returns the summary."""
    folder.mkdir(exist_ok=True)
    return rerun(conversations.write_recipe(folder, base, **changes))


def rerun(recipe: Path, *overrides: str) -> dict:
    """Trains by a recipe that is there; returns the summary."""
    return train(*parse_recipe(recipe, overrides))


def resume(recipe: Path, *overrides: str) -> dict:
    return rerun(recipe, "resume_from_checkpoint=true", *overrides)


def command(recipe: Path, *options: str) -> int:
    """The exit code of `omnifusion train`."""
    return main(["train", str(recipe), *options])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / ("model.safetensors" if (folder / "config.json").exists() else ADAPTER))


ADAPTER = "adapter_model.safetensors"


def changed(before: dict, after: dict) -> set[str]:
    assert set(before) == set(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


def log_of(folder: Path) -> list[dict]:
    """The log lines with a loss, of the last checkpoint in a run's `output_dir`."""
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    history = json.loads(states[-1].read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def figures(folder: Path, *names: str) -> list[tuple]:
    """These figures of each logged step."""
    return [tuple(entry[name] for name in names) for entry in log_of(folder)]
