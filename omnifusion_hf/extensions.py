# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Encoders and adapters in files of their users: imported by commands, and changed to the code of a saved folder."""

import ast
import os
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


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
