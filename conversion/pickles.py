"""Reads pickles without running code in them.

State dicts need no class. The release's `projection.pt` is a pickled module: torch's weights-only loader reads it with
an exact allow-list, and each class on the list becomes a [`PickleStub`], which keeps the state without the behaviour.
Any other class is refused.
"""

import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch


class PickleStub:
    """Replaces a pickled class: holds its attributes, without its methods."""

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Parameters and buffers below this module by their state-dict names."""
        own = {**self.__dict__.get("_parameters", {}), **self.__dict__.get("_buffers", {})}
        found = {prefix + name: tensor.detach() for name, tensor in own.items() if tensor is not None}
        for name, module in self.__dict__.get("_modules", {}).items():
            if isinstance(module, PickleStub):
                found |= module.tensors(f"{prefix}{name}.")
        return found

    def __getattr__(self, name):
        modules = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        raise AttributeError(name)


RELEASE_CLASSES = [
    "models.VisualToGPTMapping",
    "torch.nn.functional.relu",
    "torch.nn.modules.activation.MultiheadAttention",
    "torch.nn.modules.dropout.Dropout",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.linear.NonDynamicallyQuantizableLinear",
    "torch.nn.modules.normalization.LayerNorm",
    "torch.nn.modules.transformer.TransformerEncoderLayer",
]


def read(path: Path, classes: list[str] = ()):
    """The file's content, on the CPU, memory-mapped; `classes` become [`PickleStub`].

    Raises `ValueError` for a file that names another class, or that is not a torch file.
    """
    try:
        with torch.serialization.safe_globals([(PickleStub, name) for name in classes]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (UnpicklingError, RuntimeError, TypeError, AttributeError, EOFError) as error:
        reason = str(error).split("\n")[0] if not isinstance(error, UnpicklingError) else _refused(path, classes)
        raise ValueError(
            f"{path} was not read: {reason or error}. Nothing in it was run; get it from the authors' repository."
        ) from error


def _refused(path: Path, classes: list[str]) -> str:
    if not zipfile.is_zipfile(path):
        return "it is not a weights file"
    named = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - set(classes)
    return f"it names {sorted(named)}, which weights do not need" if named else "it is not a weights file"
