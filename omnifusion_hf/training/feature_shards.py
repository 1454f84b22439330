# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""A folder of safetensors shards with one row of features per view, named by the hash of the view's pixels.

What rows depend on beside pixels (encoder weights, layers, image settings, precision) stands in each shard's metadata,
so that a stale one is recognised. Shards are whole or absent, and several processes may add theirs at a time.
"""

import json
from functools import cache
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..io import staged_file
from .fingerprints import differences, leaves


NO_PART_OF_THE_FEATURES = ("max_image_pixels", "dtype", "transformers_version", "_name_or_path")


class FeatureShards:
    """The shards of one folder: rows (F,) by the name of their view.

    settings: what rows depend on beside pixels. Raises `ValueError` where a shard was made with others.
    """

    def __init__(self, folder: str | Path, settings: dict[str, str]):
        self.folder, self.settings = Path(folder), settings
        self.folder.mkdir(parents=True, exist_ok=True)
        self.find()

    def find(self):
        """Takes in every shard that the folder has by now."""
        self.shard_of = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                shard = safe_open(path, "pt")
            except SafetensorError as error:
                raise ValueError(f"{path} is cut off or no shard of features ({error}); delete it.") from None
            self._check_settings(path, shard.metadata() or {})
            self.shard_of |= dict.fromkeys(shard.keys(), path)

    def _check_settings(self, path: Path, stored: dict[str, str]):
        if changed := differences(stored, self.settings):
            raise ValueError(
                f"{path} holds features of other settings: {'; '.join(changed)}. Set cache_vision_features to another "
                "folder, or delete this one and its features are computed anew."
            )

    def __contains__(self, view: str) -> bool:
        return view in self.shard_of

    def read(self, views: list[str]) -> torch.Tensor:
        return torch.stack([_open(self.shard_of[view]).get_tensor(view) for view in views])  # (V, F)

    def write(self, rows: dict[str, torch.Tensor]):
        """Adds a shard."""
        with staged_file(self.folder / f"features-{uuid4().hex}.safetensors") as part:
            save_file(rows, part, self.settings)


@cache
def _open(path: Path) -> safe_open:
    return safe_open(path, "pt")


def view_name(pixels: torch.Tensor) -> str:
    return blake2b(pixels.contiguous().numpy(), digest_size=16).hexdigest()


def as_metadata(settings: dict) -> dict[str, str]:
    """Settings as text, one for each leaf, without what can differ between two models that give the same features."""
    kept = {name: value for name, value in leaves(settings) if name.split(".")[-1] not in NO_PART_OF_THE_FEATURES}
    return {name: json.dumps(value) for name, value in kept.items()}


def weights_hash(module: torch.nn.Module) -> str:
    digest = blake2b(digest_size=16)
    for name, weight in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
