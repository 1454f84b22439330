# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Batches of samples of about one length, so that less of them is padding where samples are not packed.

Trainer's own `train_sampling_strategy: group_by_length` measures a dataset by taking every sample, decoded images
and all; here texts are tokenised and image files are read as far as their size.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from tqdm import tqdm
from transformers import TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from ..model.image_processing_omnifusion import open_image
from ..model.processing_omnifusion import OmniFusionProcessor
from .devices import global_batch
from .preprocessing import EncodedDataset
from .vision_cache import CachedDataset


class LengthGroupedDataset(Dataset):
    """`dataset` in an order in which neighbours have about one length; another one in each epoch, given by `seed`.

    lengths: of each sample, in tokens. batch_size: samples of one optimiser step.
    With persistent data-loading workers every epoch has the order of the first.
    """

    def __init__(self, dataset: Dataset, lengths: list[int], batch_size: int, seed: int):
        self.dataset, self.lengths, self.batch_size, self.seed = dataset, lengths, batch_size, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int):
        """Called by the data loader."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        self.order = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        return self.dataset[self.order[index]]


def group_by_length(dataset: Dataset, processor: OmniFusionProcessor, args: TrainingArguments) -> Dataset:
    """`dataset` of encoded samples as `args.train_sampling_strategy` wants it; where that is `group_by_length`, the
    strategy becomes `sequential`, for the order is then the dataset's own. Raises `ValueError` for streamed data, and
    for `batch_rebalance`, which takes every sample, decoded images and all."""
    if args.train_sampling_strategy == "batch_rebalance":
        raise ValueError(
            "train_sampling_strategy: batch_rebalance reads all samples beforehand; use group_by_length or packing."
        )
    if args.train_sampling_strategy != "group_by_length":
        return dataset
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            "group_by_length needs the lengths of all samples, but these are streamed; use packing: true."
        )
    args.train_sampling_strategy = "sequential"
    return LengthGroupedDataset(dataset, lengths_of(dataset, processor), global_batch(args), order_seed(args))


def order_seed(args: TrainingArguments) -> int:
    """What the order of the data is a function of."""
    return args.seed if args.data_seed is None else args.data_seed


def lengths_of(dataset: EncodedDataset | CachedDataset, processor: OmniFusionProcessor) -> list[int]:
    """Tokens of each sample: exact where features are cached, else without those of the chat template's own words."""
    if isinstance(dataset, CachedDataset):
        return [len(sample["input_ids"]) for sample in dataset.samples]
    texts_and_images = (_measure(dataset.dataset, index, processor) for index in range(len(dataset)))
    bar = tqdm(texts_and_images, desc="measuring samples", total=len(dataset), leave=False, disable=None)
    return list(_add_up(bar, processor))


def _measure(dataset: Dataset, index: int, processor: OmniFusionProcessor) -> tuple[str, int]:
    """Text of a raw sample, and the tokens of its images; nothing of one that is broken, which is reported later."""
    try:
        sample = dataset.peek(index)
        parts = [part for message in sample["messages"] for part in message["content"]]
        most = processor.image_processor.max_image_pixels
        sizes = [pixel_size_of(part["image"], most) for part in parts if part["type"] == "image"]
        tokens = processor.count_tokens(sizes, regions=[sample["regions"]]).total if sizes else 0
    except ValueError:
        return "", 0
    return " ".join(part["text"] for part in parts if part["type"] == "text"), tokens


def pixel_size_of(source: Path | bytes | Image.Image, max_pixels: int = 2**27) -> tuple[int, int]:
    """(height, width) of an image, from the head of its file. Raises `ValueError` for what is no image."""
    if isinstance(source, Image.Image):
        return source.size[::-1]
    with open_image(source, max_pixels) as image:
        return image.size[::-1]


def _add_up(samples: Iterator[tuple[str, int]], processor: OmniFusionProcessor) -> Iterator[int]:
    """Lengths; a tokenizer is several times faster over many texts."""
    while some := list(itertools.islice(samples, 1000)):
        texts, images = zip(*some)
        for ids, tokens in zip(processor.tokenizer(list(texts))["input_ids"], images):
            yield len(ids) + tokens
