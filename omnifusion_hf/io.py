# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Atomic file and folder writes; errors in users' files, as one line that names the file."""

import json
import os
import re
import shutil
import sys
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from uuid import uuid4

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError


# Files that training leaves in a model folder and the model card shows.
SUMMARY = "training_summary.json"
LOSS_PLOT = "training_loss.png"
RECIPES = Path(__file__).parent / "recipes"
MOST_BRACKETS = 100  # of YAML text in each other: the parser takes quadratic time for more


def recipe_path(name: str | Path) -> Path:
    """The path of a YAML file, or of a packaged one by its name, `pretrain` or `data/finetune_mixture.yaml`."""
    packaged = (RECIPES / f"{name}{suffix}" for suffix in ("", ".yaml"))
    return Path(name) if Path(name).is_file() else next((path for path in packaged if path.is_file()), Path(name))


def check_new(path: str | Path):
    """Raises `ValueError` for a path that exists."""
    if Path(path).exists():
        raise ValueError(f"{path} exists and is not replaced; remove it or choose another name.")


@contextmanager
def staged_folder(path: str | Path, replace: bool = True):
    """Yields a temporary folder beside `path`, which is renamed to `path` if the block succeeds, else removed.

    Without `replace`, raises `ValueError` if another process made `path` meanwhile."""
    path = Path(path)
    part, old = (path.with_name(f"{path.name}.{uuid4().hex[:8]}.{end}") for end in ("incomplete", "replaced"))
    part.mkdir(parents=True)
    try:
        yield part
        if replace and path.exists():
            path.rename(old)
        try:
            part.rename(path)
        except OSError:
            if not path.exists():
                raise
            raise ValueError(f"{path} was made by another process meanwhile and is not replaced.") from None
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def staged_file(path: str | Path):
    """Yields a path beside `path` for a file that is renamed to `path` if the block succeeds, else removed.

    Makes missing folders. The temporary file has another suffix, so writers need an explicit format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.incomplete")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: str | Path, text: str):
    """Writes a text file atomically; makes missing folders."""
    with staged_file(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def named(place: str, kind: type[ValueError] = ValueError, advice: str = ""):
    """Turns any error of the block into one that begins with `place`. Readers of a user's file raise undocumented
    ones: RecursionError, OverflowError, MemoryError, those of tarfile, pyarrow and Pillow."""
    try:
        yield
    except Exception as error:
        raise kind(f"{place}: {reason_of(error)}{advice}") from error


def reason_of(error: BaseException) -> str:
    """An error's message in one line that is never empty."""
    reason = re.sub(r"\s*\n\s*", " ", str(error)[:1000])
    if not reason or isinstance(error, (LookupError, TypeError, AttributeError)):
        reason = f"{type(error).__name__} {reason}".rstrip()
    return f"a file could not be written, is the disk full? {reason}" if UNWRITTEN.search(reason) else reason


# Errors of other packages, looked up only if these are loaded. torch's own are recognised by their message.
FOREIGN = [
    ("safetensors", "SafetensorError"),  # damaged weights, a full disk
    ("huggingface_hub.errors", "StrictDataclassError"),  # a configuration with a value of the wrong type
    *((package, name) for package in ("httpx", "httpx2") for name in ("HTTPError", "InvalidURL")),
    *(("jinja2", "TemplateError"), ("zipfile", "BadZipFile"), ("pickle", "UnpicklingError")),
    *(("torch", "OutOfMemoryError"), ("wandb.errors", "Error")),
]
UNWRITTEN = re.compile("inline_container|PytorchStreamWriter|iostream error")


def is_mistake(error: Exception) -> bool:
    """Whether an error has a cause that the user can remove: an argument, a file, the network, the disk, a missing
    package. Any other is a fault of this package, and its traceback is shown."""
    kinds = [ValueError, OSError, ImportError, MemoryError, RecursionError]
    kinds += [getattr(sys.modules.get(package), name, ()) for package, name in FOREIGN]
    said = str(error)
    return isinstance(error, tuple(kinds)) or bool(UNWRITTEN.search(said)) or "DefaultCPUAllocator" in said


@contextmanager
def friendly_load_errors(folder_or_hub_id: str | Path):
    """Turns loading errors into a one-line `ValueError` that names the folder, or says that there is none.

    transformers takes the name of a missing folder for a Hub id. Damaged weights, tokenizers and configurations raise
    errors of many packages, RuntimeError and Exception among them.
    """
    try:
        yield
    except Exception as error:
        if not (is_mistake(error) or isinstance(error, RuntimeError) or type(error) is Exception):
            raise
        if os.path.isdir(folder_or_hub_id):
            raise ValueError(f"cannot load {folder_or_hub_id}: {reason_of(error)}") from error
        absent = f"there is no folder {folder_or_hub_id}, and the Hub did not give it"
        raise ValueError(f"{absent}: {reason_of(error)}") from error


def read_json(text: str | bytes, place: str, **options):
    """The content of JSON text. Raises `ValueError` that begins with `place`, also for too deep nesting."""
    with named(place):
        return json.loads(text, **options)


def read_text(path: str | Path) -> str:
    """A text file's content without byte order mark. Raises `ValueError` that names a file that is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}; convert it.") from None


def read_yaml(text: str, source: str):
    """The content of YAML 1.2 text (`no` is a string). Raises `ValueError` that names its source, also for a duplicate
    key."""
    depths = accumulate((letter in "[{") - (letter in "]}") for letter in text)
    with named(f"{source} is not YAML"):
        if max(depths, default=0) > MOST_BRACKETS:
            raise ValueError(f"it has more than {MOST_BRACKETS} brackets in each other")
        try:
            return YAML(typ="safe", pure=True).load(text)
        except MarkedYAMLError as error:
            raise ValueError(f"{error.problem} in line {error.problem_mark.line + 1}") from error
