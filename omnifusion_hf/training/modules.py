# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Modules by their name, as objects of a subclass, and in their earlier dtypes."""

from typing import TypeVar

import torch
from torch import nn


Module = TypeVar("Module", bound=nn.Module)


def path_of(model: nn.Module, wanted: str | nn.Module) -> str:
    """The dotted name of a module, which may be given by the last piece of that name."""
    return next(
        name
        for name, module in model.named_modules()
        if module is wanted or (isinstance(wanted, str) and name.rpartition(".")[-1] == wanted)
    )


def as_class(module: nn.Module, cls: type[Module]) -> Module:
    """An object of `cls` that shares its parameters, submodules, hooks and attributes with `module`."""
    other = cls.__new__(cls)
    vars(other).update(vars(module))
    return other


def restore_dtypes(model: nn.Module, dtypes: dict[str, torch.dtype]):
    """Casts parameters to the dtypes that they had under these names; others stay as they are."""
    for name, parameter in model.named_parameters():
        in_table = name.replace("special_token_rows", "weight")
        parameter.data = parameter.data.to(dtypes.get(in_table, parameter.dtype))
