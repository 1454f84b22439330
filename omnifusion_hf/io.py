# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Finished or absent: files and folders appear under their final name only when they are complete. And the reverse:
whatever is wrong with a file that a user wrote becomes one error that names it."""

import json
import os
import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import yaml


# Files of a finished training run in its model folder; the model card shows both.
SUMMARY = "training_summary.json"
LOSS_PLOT = "training_loss.png"


@contextmanager
def staged_folder(path: str | Path, replace: bool = True):
    """Yields a temporary folder beside `path`, of this call alone, that takes its name if the block ends well, else
    goes. Raises `ValueError` without `replace` where another process was faster."""
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
    """Yields a name beside `path` for a file that takes that of `path` if the block ends well, else goes.

    Missing folders are made. Its suffix is another one: tell writers the format.
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
    """Writes a text file, and the folders above it, that nobody ever sees half written."""
    with staged_file(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def named(place: str, kind: type[ValueError] = ValueError, advice: str = ""):
    """Whatever goes wrong in the block becomes one error that begins with `place`. Readers of a user's file raise more
    than they say: RecursionError, OverflowError, MemoryError, tarfile's, pyarrow's and Pillow's own."""
    try:
        yield
    except Exception as error:
        raise kind(f"{place}: {reason_of(error)}{advice}") from error


def reason_of(error: BaseException) -> str:
    """What an error says, in one line that is never empty."""
    reason = re.sub(r"\s*\n\s*", " ", str(error)[:1000])
    if not reason or isinstance(error, (LookupError, TypeError, AttributeError)):
        reason = f"{type(error).__name__} {reason}".rstrip()
    return f"a file could not be written, is the disk full? {reason}" if UNWRITTEN.search(reason) else reason


# Errors of other packages, which are looked up only where these are loaded; torch's own are told by what they say.
FOREIGN = [
    ("safetensors", "SafetensorError"),  # damaged weights, a full disk
    ("huggingface_hub.errors", "StrictDataclassError"),  # a configuration with a value of the wrong type
    *((package, name) for package in ("httpx", "httpx2") for name in ("HTTPError", "InvalidURL")),
    *(("jinja2", "TemplateError"), ("zipfile", "BadZipFile"), ("pickle", "UnpicklingError")),
    *(("torch", "OutOfMemoryError"), ("wandb.errors", "Error")),
]
UNWRITTEN = re.compile("inline_container|PytorchStreamWriter|iostream error")


def is_mistake(error: Exception) -> bool:
    """Whether what the user gave, a file, the network, the disk or a missing package explains an error. Any other is a
    fault of this package, of which the traceback is wanted."""
    kinds = [ValueError, OSError, ImportError, MemoryError, RecursionError]
    kinds += [getattr(sys.modules.get(package), name, ()) for package, name in FOREIGN]
    said = str(error)
    return isinstance(error, tuple(kinds)) or bool(UNWRITTEN.search(said)) or "DefaultCPUAllocator" in said


def read_json(text: str | bytes, place: str, **options):
    """What JSON says. Raises `ValueError` that begins with `place`, also for what is nested too deeply."""
    with named(place):
        return json.loads(text, **options)


def read_text(path: str | Path) -> str:
    """A user's text file, without the mark that Windows puts in front. Raises `ValueError` that names it."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}; convert it.") from None


class _Loader(yaml.SafeLoader):
    """Takes `no` and `off` for text, as YAML 1.2 does, and refuses a key that stands twice."""

    yaml_implicit_resolvers = {
        start: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"`{twice[0]}` stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(?i:true|false)$"), list("tTfF"))


def read_yaml(text: str, source: str):
    """What YAML text says. Raises `ValueError` that names its source."""
    with named(f"{source} is not YAML"):
        return yaml.load(text, _Loader)
