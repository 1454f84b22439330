# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Encoders and adapters in files of their users: imported by commands, and saved with a model as remote code."""

import ast
import json
import os
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from .io import write_whole


VARIABLE = "OMNIFUSION_EXTENSIONS"


def import_extensions():
    """Imports the files that the environment variable names, separated as in PATH; they call `register_encoder` and
    `register_projector`. Raises `ValueError` for a missing file and for the name of another module."""
    for file in map(Path, filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))):
        if not file.is_file():
            raise ValueError(f"{VARIABLE} names {file}, which is not a file; separate files by `{os.pathsep}`.")
        if (loaded := sys.modules.get(file.stem)) is not None:
            if Path(getattr(loaded, "__file__", None) or "").resolve() == file.resolve():
                continue  # this import began in the file itself
            raise ValueError(f"{VARIABLE} names {file}, but a module `{file.stem}` exists; rename the file.")
        spec = spec_from_file_location(file.stem, file)
        sys.modules[file.stem] = module = module_from_spec(spec)  # before it runs, as `import` does: pickle needs it
        spec.loader.exec_module(module)


def save_extensions(classes: set[type], folder: Path):
    """Writes the files of these classes beside a saved model, and makes the folder's configuration import them.

    Raises `ValueError` for a class without a file, and for a file that needs more of this package than a folder has.
    """
    sources = {source_file(cls): cls.__name__ for cls in sorted(classes, key=lambda cls: cls.__name__)}
    *others, first = sources
    lines = [f"from .{file.stem} import {sources[file]}  # registers it" for file in others]
    lines += ["from .configuration_omnifusion import OmniFusionConfig  # config.json names it in this file"]
    for file in sources:
        text = as_remote_code(file)
        write_whole(folder / file.name, "\n".join([text, "", *lines, ""]) if file == first else text)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"]["AutoConfig"] = f"{first.stem}.OmniFusionConfig"
    write_whole(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def source_file(cls: type) -> Path:
    file = getattr(sys.modules[cls.__module__], "__file__", None)
    if file is None or cls.__module__ == "__main__":
        raise ValueError(f"{cls.__name__} must be in a file of its own, which is saved with the model; import it.")
    return Path(file)


def as_remote_code(file: Path) -> str:
    """The file with `from omnifusion_hf import …` changed to imports of the files that a saved folder has."""
    package, text = sys.modules[__package__], file.read_text("utf-8")
    lines = text.splitlines()
    for node in reversed(ast.parse(text, str(file)).body):
        if isinstance(node, ast.ImportFrom) and node.module == package.__name__:
            imports = [f"from {shipped_file(package, name.name)} import {ast.unparse(name)}" for name in node.names]
            lines[node.lineno - 1 : node.end_lineno] = imports
    text = "\n".join([*lines, ""])
    if match := re.search(r"^ *(import|from) omnifusion_hf\b.*$", text, re.M):
        raise ValueError(
            f"{file} is saved with the model, but the folder has no file for `{match[0].strip()}`; import names by "
            "`from omnifusion_hf import …`: register_encoder, register_projector, Projector, OmniFusionConfig."
        )
    return text


def shipped_file(package, name: str) -> str:
    """The file of a saved folder that defines a public name of this package, as in an import; else the package's."""
    place = getattr(getattr(package, name, None), "__module__", "")
    file = place.removeprefix(f"{package.__name__}.model.")
    return package.__name__ if file == place else f".{file}"
