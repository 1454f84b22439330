# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Finished or absent: files and folders appear under their final name only when they are complete. YAML by name."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import yaml


@contextmanager
def staged_folder(path: str | Path):
    """Yields a temporary folder beside `path` that takes its name if the block ends well, else goes."""
    path = Path(path)
    part = path.with_name(path.name + ".incomplete")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_whole(path: str | Path, text: str):
    """Writes a text file, and the folders above it, that nobody ever sees half written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".incomplete")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def read_yaml(text: str, source: str):
    """What YAML text says. Raises `ValueError` that names its source."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{source} is not YAML: {reason}") from None
