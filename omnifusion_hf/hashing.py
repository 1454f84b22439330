# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Hashes by which two models are told apart."""

from collections.abc import Iterator
from hashlib import sha256

import torch


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 of the name, dtype, shape and bytes of every weight and buffer that the module saves."""
    digest = sha256()
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        for plain in _plain_tensors(weight):
            digest.update(plain.cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _plain_tensors(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors of which a quantised weight of torchao consists; for any other weight the weight itself."""
    if not hasattr(weight, "__tensor_flatten__"):
        yield weight.detach()
        return
    for name in weight.__tensor_flatten__()[0]:
        yield from _plain_tensors(getattr(weight, name))
