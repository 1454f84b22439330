# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Finished or absent: files and folders appear under their final name only when they are complete. YAML by name."""

import os
import re
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
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{source} is not YAML: {reason}") from None
