"""Finished or absent: files and folders appear under their final name only when they are complete."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def finish_folder(path: Path):
    """Yields a temporary folder beside `path` that takes its name when the block ends well."""
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    shutil.rmtree(path, ignore_errors=True)
    part.rename(path)


def save_state(path: Path, step: int, *parts) -> None:
    """Saves the `state_dict` of every part (model, optimisers, schedules; the order counts) and their step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"step": step, "parts": [p.state_dict() for p in parts]}, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def load_state(path: Path, *parts) -> int:
    """Fills the parts from a saved state and returns its step; 0 and nothing touched when there is none."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for part, saved in zip(parts, state["parts"], strict=True):
        part.load_state_dict(saved)
    return state["step"]


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1))
    os.replace(part, path)
