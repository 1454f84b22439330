# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Frozen features once: every view is encoded a single time, kept on disk and read in each epoch.

A view's row (F,) is all that the encoders yield of it for the adapter, flattened. In training, rows travel in the
place of `pixel_values` and the vision tower hands them to the adapter instead of computing them.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from tqdm import tqdm
from transformers import TrainingArguments

from ..model.image_processing_omnifusion import OmniFusionImageProcessor
from ..model.modeling_omnifusion_vision import OmniFusionVisionModel, OmniFusionVisionOutput
from .devices import is_sharded
from .feature_shards import FeatureShards, as_metadata, view_name, weights_hash


SHARD_BYTES = 2**29  # what is lost at most where a run is killed


def cached_dataset(
    dataset: Dataset,
    model: nn.Module,
    image_processor: OmniFusionImageProcessor,
    folder: str | Path,
    args: TrainingArguments,
) -> "CachedDataset":
    """`dataset` (encoded samples) with features from `folder` in the place of pixels; encodes what is not there yet.

    Changes the model's vision tower so that it takes these. Goes through the images once to name their views, and
    once more through those that have new ones; the ranks of a run share both. Other runs may fill the same folder.
    Raises `ValueError` for encoders that train, streamed data, a cache of other encoders or settings, and a full disk.
    """
    tower = vision_tower_of(model)
    _check_can_cache(tower, dataset, args)
    layout = FeatureLayout.of(tower, args)
    shards = FeatureShards(folder, feature_settings(model, image_processor, args))
    samples = name_views(dataset, args)
    # The last sample that has a view: where a broken one is skipped, the next stands in its place.
    sources = {view: index for index, sample in enumerate(samples) for view in sample["views"]}
    missing = sum(view not in shards for view in sources)
    _check_disk(missing, layout, shards.folder, announce=args.process_index == 0)
    fill(shards, dataset, sources, tower, args)
    shards.find()
    serve_rows(tower, layout)
    return CachedDataset(samples, shards)


class CachedDataset(Dataset):
    """Encoded samples whose `pixel_values` are rows of features (V, F), read from disk; images stay closed."""

    def __init__(self, samples: list[dict], shards: FeatureShards):
        self.samples, self.shards = samples, shards

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        sample = dict(self.samples[index])
        views = sample.pop("views")
        lists = {key: sample[key].tolist() for key in ("input_ids", "labels")}
        return sample | lists | ({"pixel_values": self.shards.read(views)} if views else {})


def name_views(dataset: Dataset, args: TrainingArguments) -> list[dict]:
    """Every sample without its pixels; `views` are the names of these. Each rank goes through its share."""
    share = range(args.process_index, len(dataset), args.world_size)
    batches = _batches(dataset, share, _without_pixels, "naming views", args)
    samples = zip(share, (sample for batch in batches for sample in batch))
    return [sample for _, sample in sorted(gather_object(list(samples)), key=lambda pair: pair[0])]


def fill(shards: FeatureShards, dataset: Dataset, sources: dict[str, int], tower: nn.Module, args: TrainingArguments):
    """Encodes the views `{name: index of a sample that has it}` that the shards lack; ranks take samples in turn."""
    # Turns are counted over all samples, not over those that lack something: other runs may change these meanwhile.
    turns = {index: turn for turn, index in enumerate(sorted(set(sources.values())))}
    share = {index for index, turn in turns.items() if turn % args.world_size == args.process_index}
    mine = {view: index for view, index in sources.items() if index in share and view not in shards}
    rows = {}
    for batch in _batches(dataset, sorted(set(mine.values())), _pixels_by_name, "encoding views", args):
        new = {view: pixels for view, pixels in batch.items() if mine.pop(view, None) is not None}
        if new:
            encoded = join(encode(tower, torch.stack(list(new.values())), args)).cpu()  # (V, F)
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
    """Samples as they wait in memory: eight bytes a token."""
    return [
        {key: value for key, value in sample.items() if key != "pixel_values"}
        | {key: np.array(sample[key], np.int32) for key in ("input_ids", "labels")}
        | {"views": [view_name(view) for view in sample.get("pixel_values", [])]}
        for sample in samples
    ]


def _pixels_by_name(samples: list[dict]) -> dict[str, torch.Tensor]:
    return {view_name(view): view for sample in samples for view in sample.get("pixel_values", [])}


@dataclass(frozen=True)
class FeatureLayout:
    """How a row (F,) divides into what the encoders yield of one view.

    shapes: (P_e, d_e) of each feature map. last: where each encoder's last one stands. row_bytes: of one row.
    """

    shapes: tuple[tuple[int, int], ...]
    last: tuple[int, ...]
    row_bytes: int

    @classmethod
    def of(cls, tower: OmniFusionVisionModel, args: TrainingArguments) -> "FeatureLayout":
        size = tower.config.image_size
        features = encode(tower, torch.zeros(1, 3, size, size), args)
        layers = [config.num_hidden_layers if tower.every_layer else 1 for config in tower.config.encoder_configs]
        shapes = tuple(tuple(feature.shape[1:]) for feature in features)
        return cls(shapes, tuple(end - 1 for end in accumulate(layers)), join(features).nbytes)

    def divide(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """(V, F) -> (V, P_e, d_e) each."""
        parts = rows.split([prod(shape) for shape in self.shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes)]


def join(features: list[torch.Tensor]) -> torch.Tensor:
    """(V, P_e, d_e) each -> (V, F), in the widest of their dtypes, so that no value changes."""
    return torch.cat([feature.flatten(1) for feature in features], dim=1)


def encode(tower: OmniFusionVisionModel, views: torch.Tensor, args: TrainingArguments) -> list[torch.Tensor]:
    """Features of views (V, 3, S, S) in the precision in which Trainer would compute them."""
    with torch.no_grad(), torch.autocast(args.device.type, _half(args) or torch.bfloat16, enabled=bool(_half(args))):
        return tower.to(args.device).eval()(views.to(args.device), return_dict=True).features


def _half(args: TrainingArguments) -> torch.dtype | None:
    """What Trainer computes in by autocast, if it does."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def serve_rows(tower: OmniFusionVisionModel, layout: FeatureLayout):
    """Makes the tower take rows (V, F) in the place of pixels (V, 3, S, S), which it still takes as well."""
    compute = tower.forward

    def forward(pixel_values: torch.Tensor, projector=list, **kwargs) -> OmniFusionVisionOutput:
        if pixel_values.dim() > 2:
            return compute(pixel_values, projector=projector, **kwargs)
        features = layout.divide(pixel_values)
        return OmniFusionVisionOutput(
            features=projector(iter(features)), last_features=[features[index] for index in layout.last]
        )

    tower.forward = forward


def vision_tower_of(model: nn.Module) -> OmniFusionVisionModel:
    return next(module for name, module in model.named_modules() if name.split(".")[-1] == "vision_tower")


def feature_settings(
    model: nn.Module, image_processor: OmniFusionImageProcessor, args: TrainingArguments
) -> dict[str, str]:
    """What features depend on beside the pixels of their view."""
    config, vision = model.config, model.config.vision_config.to_dict()
    return as_metadata(
        {
            "encoder_weights": weights_hash(vision_tower_of(model)),
            "vision_feature_layer": config.vision_feature_layer,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
            "autocast": str(_half(args)),
            **{name: vision[name] for name in ("encoder_configs", "image_sizes", "image_normalizations")},
            "image_processor": image_processor.to_dict(),
        }
    )


def _check_can_cache(tower: OmniFusionVisionModel, dataset: Dataset, args: TrainingArguments):
    if any(parameter.requires_grad for parameter in tower.parameters()):
        raise ValueError(
            "cache_vision_features keeps what frozen encoders yield, but here they train; unset it, or freeze them."
        )
    if is_sharded(args):  # a rank without images would wait for weights of encoders that the others do not run
        raise ValueError("cache_vision_features does not go with FSDP or DeepSpeed; unset it, or use ddp.yaml.")
    if isinstance(dataset, IterableDataset):
        raise ValueError("cache_vision_features reads samples again by their index, but these are streamed; unset it.")


def _check_disk(views: int, layout: FeatureLayout, folder: Path, announce: bool):
    """Says what the cache will take; refuses where the disk has less."""
    needed, free = views * layout.row_bytes, shutil.disk_usage(folder).free
    size = (
        f"{views:,} views to encode, {layout.row_bytes / 1e6:,.2f} MB each ({len(layout.shapes)} feature maps): "
        f"{needed / 1e9:,.2f} GB in {folder}, where {free / 1e9:,.2f} GB are free"
    )
    if needed > free:
        raise ValueError(
            f"cache_vision_features has no room: {size}. Name a folder on a larger disk, train on fewer images, or "
            "unset it (adapters that read all layers take as many times the space of those that read one)."
        )
    if announce:
        print(f"cache_vision_features: {size}", flush=True)
