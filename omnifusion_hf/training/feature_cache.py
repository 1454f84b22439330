# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""A cache of the frozen encoders' features: each view is encoded once, and its features are read from disk in every
epoch.

A view's row (F,) holds all features of the view for the adapter, flattened. In training, rows replace `pixel_values`,
and the vision tower passes them to the adapter. The folder holds safetensors shards with one row per view, named by
the hash of the view's pixels. A shard's metadata notes what its rows depend on otherwise (encoder weights, layers,
image settings, precision), so that a stale shard is recognised. Several processes may add shards at the same time.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import accumulate
from math import prod
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from tqdm import tqdm
from transformers import TrainingArguments

from ..hashing import weights_hash
from ..io import staged_file
from ..model.image_processing_omnifusion import OmniFusionImageProcessor
from ..model.modeling_omnifusion_vision import OmniFusionVisionModel, OmniFusionVisionOutput
from .identity import differences, leaves
from .modules import as_class, path_of
from .sharding import half_precision, is_sharded


SHARD_BYTES = 2**29  # the most that a killed run loses
NOT_OF_FEATURES = ("max_image_pixels", "resize_backend", "dtype", "transformers_version", "_name_or_path")


def cached_dataset(
    dataset: Dataset,
    model: nn.Module,
    image_processor: OmniFusionImageProcessor,
    folder: str | Path,
    args: TrainingArguments,
) -> "CachedDataset":
    """`dataset` (encoded samples) with features from `folder` instead of pixels; encodes missing features first.

    Replaces the model's vision tower by a [`FeatureVisionModel`]. Reads all images once to name their views, and the
    images with new views once more; the ranks of a run share both. Other runs may fill the same folder.
    Raises `ValueError` for encoders that train, streamed data, a cache of other encoders or settings, and a full disk.
    """
    path = path_of(model, "vision_tower")
    tower = model.get_submodule(path)
    _check_can_cache(tower, dataset, args)
    layout = FeatureLayout.of(tower, args)
    shards = FeatureShards(folder, feature_settings(model, image_processor, args))
    samples = name_views(dataset, args)
    # The last sample with each view: the next good sample may replace one that is skipped.
    sources = {view: index for index, sample in enumerate(samples) for view in sample["views"]}
    missing = sum(view not in shards for view in sources)
    _check_disk(missing, layout, shards.folder, announce=args.process_index == 0)
    fill(shards, dataset, sources, tower, args)
    shards.find()
    model.set_submodule(path, FeatureVisionModel.of(tower, layout))
    return CachedDataset(samples, shards)


class CachedDataset(Dataset):
    """Encoded samples whose `pixel_values` are rows of features (V, F), read from disk. Opens no image."""

    def __init__(self, samples: list[dict], shards: "FeatureShards"):
        self.samples, self.shards = samples, shards

    def __len__(self) -> int:
        return len(self.samples)

    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return [len(sample["input_ids"]) for sample in self.samples]

    def __getitem__(self, index: int) -> dict:
        sample = dict(self.samples[index])
        views = sample.pop("views")
        lists = {key: sample[key].tolist() for key in ("input_ids", "labels")}
        if "image_view_index" in sample:
            lists["image_view_index"] = torch.from_numpy(sample["image_view_index"])
        return sample | lists | ({"pixel_values": self.shards.read(views)} if views else {})


def name_views(dataset: Dataset, args: TrainingArguments) -> list[dict]:
    """Every sample without pixels but with `views`, the names of its views. Each rank reads its share."""
    share = range(args.process_index, len(dataset), args.world_size)
    batches = _batches(dataset, share, _without_pixels, "naming views", args)
    samples = zip(share, (sample for batch in batches for sample in batch))
    return [sample for _, sample in sorted(gather_object(list(samples)), key=lambda pair: pair[0])]


def fill(
    shards: "FeatureShards", dataset: Dataset, sources: dict[str, int], tower: nn.Module, args: TrainingArguments
):
    """Encodes the views `{name: index of a sample that has it}` that the shards lack. Ranks take turns at samples."""
    # Turns count all samples, because other runs may change the set of missing ones in the meantime.
    turns = {index: turn for turn, index in enumerate(sorted(set(sources.values())))}
    share = {index for index, turn in turns.items() if turn % args.world_size == args.process_index}
    mine = {view: index for view, index in sources.items() if index in share and view not in shards}
    rows = {}
    for batch in _batches(dataset, sorted(set(mine.values())), _pixels_by_name, "encoding views", args):
        new = {view: pixels for view, pixels in batch.items() if mine.pop(view, None) is not None}
        if new:
            encoded = join(compute_features(tower, torch.stack(list(new.values())), args)).cpu()  # (V, F)
            rows |= {view: row.clone() for view, row in zip(new, encoded)}
        if sum(row.nbytes for row in rows.values()) >= SHARD_BYTES:
            shards.write(rows)
            rows = {}
    if rows:
        shards.write(rows)
    PartialState().wait_for_everyone()


def _batches(dataset: Dataset, indices: Sequence[int], collate, title: str, args: TrainingArguments) -> Iterator:
    loader = DataLoader(
        Subset(dataset, indices),
        batch_size=args.per_device_train_batch_size,
        collate_fn=collate,  # runs in the workers, where hashing belongs
        num_workers=args.dataloader_num_workers,
        generator=torch.Generator(),  # leaves the global one as it is
    )
    return tqdm(loader, title, disable=args.disable_tqdm or args.process_index > 0)


def _without_pixels(samples: list[dict]) -> list[dict]:
    """Samples as they are kept in memory, with eight bytes per token, and as arrays: a worker's tensor holds a file
    open."""
    return [
        {key: value for key, value in sample.items() if key != "pixel_values"}
        | {key: np.array(sample[key], np.int32) for key in ("input_ids", "labels")}
        | {key: sample[key].numpy() for key in ("image_view_index",) if key in sample}
        | {"views": [view_name(view) for view in sample.get("pixel_values", [])]}
        for sample in samples
    ]


def _pixels_by_name(samples: list[dict]) -> dict[str, torch.Tensor]:
    return {view_name(view): view for sample in samples for view in sample.get("pixel_values", [])}


@dataclass(frozen=True)
class FeatureLayout:
    """The division of a row (F,) into the feature maps of one view.

    shapes: (P_e, d_e) of each feature map. last: index of each encoder's last one. row_bytes: size of a row.
    """

    shapes: tuple[tuple[int, int], ...]
    last: tuple[int, ...]
    row_bytes: int

    @classmethod
    def of(cls, tower: OmniFusionVisionModel, args: TrainingArguments) -> "FeatureLayout":
        size = tower.config.image_size
        features = compute_features(tower, torch.zeros(1, 3, size, size), args)
        layers = [output.num_layers if tower.every_layer else 1 for output in tower.config.encoder_outputs]
        shapes = tuple(tuple(feature.shape[1:]) for feature in features)
        return cls(shapes, tuple(end - 1 for end in accumulate(layers)), join(features).nbytes)

    def divide(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """(V, F) -> (V, P_e, d_e) each."""
        parts = rows.split([prod(shape) for shape in self.shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes)]


def join(features: list[torch.Tensor]) -> torch.Tensor:
    """(V, P_e, d_e) each -> (V, F), in the widest dtype of them, so that no value changes."""
    return torch.cat([feature.flatten(1) for feature in features], dim=1)


def compute_features(tower: OmniFusionVisionModel, views: torch.Tensor, args: TrainingArguments) -> list[torch.Tensor]:
    """Features of views (V, 3, S, S) in the precision in which Trainer would compute them."""
    half = half_precision(args)
    with torch.no_grad(), torch.autocast(args.device.type, half or torch.bfloat16, enabled=half is not None):
        return tower.to(args.device).eval()(views.to(args.device), return_dict=True).features


class FeatureVisionModel(OmniFusionVisionModel):
    """A vision tower that takes rows of features (V, F) as well as pixels (V, 3, S, S)."""

    layout: FeatureLayout

    @classmethod
    def of(cls, tower: OmniFusionVisionModel, layout: FeatureLayout) -> "FeatureVisionModel":
        """Shares the encoders and hooks of `tower`."""
        model = as_class(tower, cls)
        model.layout = layout
        return model

    def forward(self, pixel_values: torch.Tensor, projector=list, **kwargs) -> OmniFusionVisionOutput:
        if pixel_values.dim() > 2:
            return super().forward(pixel_values, projector=projector, **kwargs)
        features = self.layout.divide(pixel_values)
        return OmniFusionVisionOutput(
            features=projector(iter(features)), last_features=[features[index] for index in self.layout.last]
        )


def feature_settings(
    model: nn.Module, image_processor: OmniFusionImageProcessor, args: TrainingArguments
) -> dict[str, str]:
    """The settings, apart from the pixels of a view, that its features depend on."""
    config, vision = model.config, model.config.vision_config.to_dict()
    return as_metadata(
        {
            "encoder_weights": weights_hash(model.get_submodule(path_of(model, "vision_tower"))),
            "vision_feature_layer": config.vision_feature_layer,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
            "autocast": str(half_precision(args)),
            **{name: vision[name] for name in ("encoder_configs", "image_sizes", "image_normalizations")},
            "image_processor": image_processor.to_dict(),
        }
    )


def _check_can_cache(tower: OmniFusionVisionModel, dataset: Dataset, args: TrainingArguments):
    if any(parameter.requires_grad for parameter in tower.parameters()):
        raise ValueError("cache_vision_features needs frozen encoders, but here they train; unset it, or freeze them.")
    if is_sharded(args):  # a rank without images would wait for weights of encoders that the others do not run
        raise ValueError("cache_vision_features does not work with FSDP or DeepSpeed; unset it, or use ddp.yaml.")
    if isinstance(dataset, IterableDataset):
        raise ValueError("cache_vision_features reads samples by their index, but these are streamed; unset it.")


def _check_disk(views: int, layout: FeatureLayout, folder: Path, announce: bool):
    """Prints the size of the cache. Raises `ValueError` if the disk has less space."""
    needed, free = views * layout.row_bytes, shutil.disk_usage(folder).free
    size = (
        f"{views:,} views to encode, {layout.row_bytes / 1e6:,.2f} MB each ({len(layout.shapes)} feature maps): "
        f"{needed / 1e9:,.2f} GB in {folder}, where {free / 1e9:,.2f} GB are free"
    )
    if needed > free:
        raise ValueError(
            f"cache_vision_features has no room: {size}. Name a folder on a larger disk, train on fewer images, or "
            "unset it (an adapter that reads all layers needs the space of one layer times their number)."
        )
    if announce:
        print(f"cache_vision_features: {size}", flush=True)


class FeatureShards:
    """The shards of one folder: rows (F,) by the name of their view.

    settings: what rows depend on, apart from pixels. Raises `ValueError` for a shard of other settings.
    """

    def __init__(self, folder: str | Path, settings: dict[str, str]):
        self.folder, self.settings = Path(folder), settings
        self.folder.mkdir(parents=True, exist_ok=True)
        self.find()

    def find(self):
        """Finds every shard that the folder holds now."""
        self.shard_of = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                shard = safe_open(path, "pt")
            except SafetensorError as error:
                raise ValueError(f"{path} is cut off or not a shard of features ({error}); delete it.") from None
            self._check_settings(path, shard.metadata() or {})
            self.shard_of |= dict.fromkeys(shard.keys(), path)

    def _check_settings(self, path: Path, stored: dict[str, str]):
        if changed := differences(stored, self.settings):
            raise ValueError(
                f"{path} holds features of other settings: {'; '.join(changed)}. Set cache_vision_features to another "
                "folder, or delete this one to compute its features again."
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
    """One text per setting, without those that may differ between two models with equal features."""
    kept = {name: value for name, value in leaves(settings) if name.split(".")[-1] not in NOT_OF_FEATURES}
    return {name: json.dumps(value) for name, value in kept.items()}
