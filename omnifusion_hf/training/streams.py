# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Hugging Face datasets that are read on while training, for what does not fit the disk; they never end.

Their order is a function of the seed and of the number of data-loading workers, to whom the library shares the
files out. `Trainer` resumes a stream exactly by reading it again up to where it was.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import count, islice

from torch.utils.data import IterableDataset, get_worker_info

from ..io import named
from .conversations import BadSamples, BrokenSampleError, SampleReader, map_good
from .fingerprints import as_bytes, content_hash
from .readers import row_of_dataset, undecoded


SHUFFLE_BUFFER = 1000  # rows that are held, their images encoded, to be shuffled among each other


class SampleStream(IterableDataset):
    """Raw samples of a streamed dataset, in another order each time that it is read.

    Raises `ValueError` for a stream that cannot be read, without rows, or of fewer files than there are workers.
    """

    def __init__(self, stream: IterableDataset, path: str, reader: SampleReader, seed: int, bad_samples: BadSamples):
        stream = undecoded(stream)
        with named(f"cannot read {path}"):
            first = list(islice(stream, 8))
        if not first:
            raise ValueError(f"{path} holds no rows.")
        self.content = content_hash([], map(as_bytes, first))
        rows = stream.map(_with_index, with_indices=True)
        self.rows = rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        self.path, self.reader, self.bad_samples = path, reader, bad_samples

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        if worker is not None and self.rows.num_shards < worker.num_workers:
            raise ValueError(
                f"{self.path} has {self.rows.num_shards} files to share out to {worker.num_workers} workers; set "
                f"dataloader_num_workers={self.rows.num_shards} or less."
            )
        for epoch in count():
            self.rows.set_epoch(epoch)
            yield from map_good(self._read, self._rows(), self.bad_samples)

    def identity(self) -> list[dict]:
        """The first rows and the number of files: a stream is never read to its end."""
        return [{"content": self.content, "files": self.rows.num_shards}]

    def _rows(self) -> Iterator[dict]:
        with named(f"cannot read on in {self.path}"):
            yield from self.rows

    def _read(self, indexed: dict) -> dict:
        row = indexed["row"]
        place = row.get("__url__") or f"{self.path}, row {indexed['index']} of a worker's share"
        with named(place, BrokenSampleError):
            row = row_of_dataset(row)
        return self.reader(row, place)


def _with_index(row: dict, index: int) -> dict:
    return {"row": row, "index": index}


class StreamMixture(IterableDataset):
    """Streams mixed by their weights, by a generator of this seed."""

    def __init__(self, streams: Sequence[IterableDataset], weights: Sequence[float], seed: int):
        self.streams, self.weights, self.seed = streams, weights, seed

    def identity(self) -> list[dict]:
        return [
            one | {"weight": weight} for each, weight in zip(self.streams, self.weights) for one in each.identity()
        ]

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        generator = random.Random(f"{self.seed} {worker.id if worker else 0}")
        streams = [iter(stream) for stream in self.streams]
        while True:
            yield next(generator.choices(streams, self.weights)[0])
