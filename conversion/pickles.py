"""Reading pickles without running anything in them.

State dicts name no class. The release's `projection.pt` is a whole pickled module: torch's weights-only loader reads
it with an exact allow-list, and each class on the list becomes an inert stand-in that keeps the state and has no
behaviour. Everything else is refused.
"""

import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch


class Inert:
    """Stands in for a pickled class: holds what the file says of it."""

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Parameters and buffers below this module by their state-dict names."""
        own = {**self.__dict__.get("_parameters", {}), **self.__dict__.get("_buffers", {})}
        found = {prefix + name: tensor.detach() for name, tensor in own.items() if tensor is not None}
        for name, module in self.__dict__.get("_modules", {}).items():
            if isinstance(module, Inert):
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
    """The file's content, on the CPU, memory-mapped; `classes` become [`Inert`].

    Raises `ValueError` for a file that names anything else, or that is no torch file.
    """
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in classes]):
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
    return f"it wants to load {sorted(named)}, which no weights need" if named else "it is not a weights file"
