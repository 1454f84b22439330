# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Hugging Face datasets that are read on while training: the library shuffles, mixes and shares them out to workers.

Their order is a function of the seed and of the numbers of devices and data-loading workers. `Trainer` resumes a
stream exactly by reading it again up to where it was.
"""

from collections.abc import Callable, Sequence

from torch.utils.data import IterableDataset

from .data import BadSamples, BrokenSampleError, SampleReader
from .sources import row_of_dataset, undecoded


SHUFFLE_BUFFER = 1000  # rows that are held, their pictures encoded, to be shuffled among each other


def stream_samples(
    stream: IterableDataset, path: str, reader: SampleReader, seed: int, bad_samples: BadSamples
) -> IterableDataset:
    """Raw samples of a streamed dataset, without end."""
    rows = undecoded(stream).map(lambda row, index: {"row": row, "index": index}, with_indices=True)
    rows = rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER).repeat(None)

    def read(indexed: dict) -> dict:
        row = indexed["row"]
        place = row.get("__url__") or f"{path}, row {indexed['index']} of its reader's share"
        return reader(row_of_dataset(row), place)

    return map_good(rows, read, bad_samples)


def mix_streams(streams: Sequence[IterableDataset], weights: Sequence[float], seed: int) -> IterableDataset:
    from datasets import interleave_datasets

    total = sum(weights)
    return interleave_datasets(list(streams), probabilities=[weight / total for weight in weights], seed=seed)


def map_good(stream: IterableDataset, function: Callable, bad_samples: BadSamples) -> IterableDataset:
    """`function` of every item; an item for which it raises [`BrokenSampleError`] is reported and left out."""

    def map_one(batch: dict) -> dict:
        try:
            result = function({key: values[0] for key, values in batch.items()})
        except BrokenSampleError as error:
            bad_samples.report(error)
            return {"name": []}
        bad_samples.good()
        return {key: [value] for key, value in result.items()}

    return stream.map(map_one, batched=True, batch_size=1, remove_columns=stream.column_names)
