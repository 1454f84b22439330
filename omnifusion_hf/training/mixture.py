# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Sources to one training set: mixture files, the number of samples of each source, their order; and streams.

A stream is a Hugging Face dataset that is read in sequence while training, for data larger than the disk. It never
ends. Its order is a function of the seed and of the number of data-loading workers, which share its files. `Trainer`
resumes a stream exactly by reading it again up to where it was.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import count, islice
from pathlib import Path

import numpy as np
from huggingface_hub.dataclasses import strict, validated_field
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..io import named, read_text, read_yaml, recipe_path
from .conversations import BadSamples, BrokenSampleError, ConversationDataset, ConversationFormat, SampleReader
from .identity import as_bytes, content_hash
from .readers import classes_of, open_rows, open_stream, row_of_dataset, undecoded


MOST = 10**9  # samples of one pass; the order of a mixture takes about 40 bytes per sample
FIRST_ROWS = 64  # of a table, a shard or a stream, one of which must be good
SHUFFLE_BUFFER = 1000  # rows of a stream that are held to be shuffled, their images not decoded


def _not_empty(path):
    if not path:
        raise ValueError("must name a file, a folder or a Hub id, got an empty text")


def _positive(number):
    if number is not None and not 0 < number <= MOST:
        raise ValueError(f"must be above 0 and at most {MOST:,}, got {number}")


@strict
@dataclass
class Source:
    """One entry of a mixture file, docs/data.md. Raises an error that names a field of the wrong type or value.

    samples: the number of samples that a pass over the mixture draws.
    weight: the source's share of a pass. Without `samples` and `weight` each sample is drawn once.
    streaming: reads the data in sequence while training, for data larger than the disk; `samples` are a share then.
    """

    path: str = validated_field(_not_empty)
    image_folder: str | None = None
    samples: int | None = validated_field(_positive, default=None)
    weight: int | float | None = validated_field(_positive, default=None)
    subset: str | None = None
    split: str = "train"
    streaming: bool = False
    columns: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    instructions: list[str] = field(default_factory=list)
    conversation_format: ConversationFormat = "llava"

    def reader(self, seed: int) -> SampleReader:
        folder = self.image_folder or (
            Path(self.path).parent if self.path.endswith((".json", ".jsonl", ".csv", ".tsv")) else ""
        )
        return SampleReader(
            self.columns, Path(folder), self.conversation_format, self.instructions, seed, self.ignored
        )


def read_mixture(path: str, defaults: Source) -> list[Source]:
    """The sources of a mixture file. Raises `ValueError` that names the entry and its unknown or wrong key."""
    content = read_yaml(read_text(recipe_path(path)), path)
    entries = content.get("sources") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries or list(content) != ["sources"]:
        raise ValueError(f"{path} must hold one list, `sources:`; see docs/data.md.")
    known, sources = {entry.name for entry in fields(Source)}, []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or "path" not in entry or set(entry) - known:
            raise ValueError(f"{path}, source {number}: needs `path` and takes {sorted(known)}, got {entry!r}.")
        with named(f"{path}, source {number}"):
            sources.append(replace(defaults, **entry))
    weighted = [source for source in sources if source.weight is not None]
    if weighted and (len(weighted) < len(sources) or any(source.samples for source in sources)):
        raise ValueError(f"{path}: give `samples` or nothing to each source, or a `weight` to every one.")
    return sources


class Mixture(Dataset):
    """Raw samples of several sources in an order that is a function of `seed` alone.

    counts: the number of samples of each source. They are drawn without replacement. A source that is used up starts
        over, so no sample repeats before all were drawn.
    """

    def __init__(self, datasets: Sequence[Dataset], counts: Sequence[int], seed: int):
        self.datasets, self.counts = datasets, counts
        order = np.random.default_rng(seed).permutation(sum(counts))
        self.sources = np.repeat(np.arange(len(datasets)), counts)[order]
        drawn = [_draw(len(dataset), count, [seed, i]) for i, (dataset, count) in enumerate(zip(datasets, counts))]
        self.rows = np.concatenate(drawn)[order]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def origins(self) -> np.ndarray:
        """A number for each sample; of the same row of the same source the same one."""
        return np.cumsum([0, *map(len, self.datasets)])[self.sources] + self.rows

    def __getitem__(self, index: int) -> dict:
        return self.datasets[self.sources[index]][int(self.rows[index])]

    def identity(self) -> list[dict]:
        known = [each.identity()[0] for each in self.datasets]
        return [one | {"drawn": count} for one, count in zip(known, self.counts)]


def _draw(size: int, count: int, seed: list[int]) -> np.ndarray:
    """`count` rows out of `size`. The numbers of draws of two rows differ by one at most."""
    generator, rows = np.random.default_rng(seed), np.empty(count, np.int64)
    for start in range(0, count, size):
        rows[start : start + size] = generator.permutation(size)[: count - start]
    return rows


def counts_of(sources: Sequence[Source], sizes: Sequence[int]) -> list[int]:
    """The number of samples of each source. Weights share out the total number of samples.

    Raises `ValueError` for a weight of less than one sample, and for more than `MOST` samples.
    """
    if sources[0].weight is None:
        counts = [size if source.samples is None else source.samples for source, size in zip(sources, sizes)]
        if sum(counts) > MOST:
            raise ValueError(f"the sources give {sum(counts):,} samples together, at most {MOST:,} are possible.")
        return counts
    total = sum(source.weight for source in sources)
    counts = [round(sum(sizes) * source.weight / total) for source in sources]
    if 0 in counts:
        path, weight = sources[counts.index(0)].path, sources[counts.index(0)].weight
        raise ValueError(
            f"{path}: weight {weight} of {total} is less than one sample of {sum(sizes)}; raise it or remove it."
        )
    return counts


class SampleStream(IterableDataset):
    """Raw samples of a streamed dataset, in a new order in each pass.

    Raises `ValueError` for a stream that cannot be read, has no rows, or has fewer files than there are workers.
    """

    def __init__(self, stream: IterableDataset, path: str, reader: SampleReader, seed: int, bad_samples: BadSamples):
        self.classes, stream = classes_of(stream), undecoded(stream)
        with named(f"cannot read {path}"):
            first = list(islice(stream, FIRST_ROWS))
        if not first:
            raise ValueError(f"{path} holds no rows.")
        self.content = content_hash([], map(as_bytes, first[:8]))
        rows = stream.map(_with_index, with_indices=True)
        self.rows = rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        self.path, self.reader, self.bad_samples = path, reader, bad_samples
        check_columns(self._read, map(_with_index, first, count()))

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        if worker is not None and self.rows.num_shards < worker.num_workers:
            raise ValueError(
                f"{self.path} has {self.rows.num_shards} files for {worker.num_workers} workers; set "
                f"dataloader_num_workers={self.rows.num_shards} or less."
            )
        for epoch in count():
            self.rows.set_epoch(epoch)
            for row in self._rows():
                try:
                    sample = self._read(row)
                except BrokenSampleError as error:
                    self.bad_samples.report(error)
                else:  # only its encoder knows whether it is good
                    yield sample

    def identity(self) -> list[dict]:
        """The content of the first rows and the number of files, because a stream is never read to its end."""
        return [{"content": self.content, "files": self.rows.num_shards}]

    def _rows(self) -> Iterator[dict]:
        with named(f"cannot read on in {self.path}"):
            yield from self.rows

    def _read(self, indexed: dict) -> dict:
        row = indexed["row"]
        place = row.get("__url__") or f"{self.path}, row {indexed['index']} of a worker's share"
        with named(place, BrokenSampleError):
            row = row_of_dataset(row, self.classes)
        return self.reader(row, place)


def _with_index(row: dict, index: int) -> dict:
    return {"row": row, "index": index}


class StreamMixture(IterableDataset):
    """Streams mixed by their weights, with a random generator of this seed."""

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


def load_data(given: Source, seed: int, bad_samples: BadSamples) -> Dataset | IterableDataset:
    """Raw samples of one source, or of a mixture file if `given.path` is a .yaml file.

    Returns a map-style dataset, or an endless stream if the sources are `streaming`.
    Raises `ValueError` for a mix of both kinds, and for a source that cannot be read.
    """
    if not given.path.endswith((".yaml", ".yml")):
        return _load(given, seed, bad_samples)
    sources = read_mixture(given.path, given)
    if len({source.streaming for source in sources}) == 2:
        raise ValueError(f"{given.path} mixes streams with sources read by index; stream all sources or none.")
    sizes = [source.samples for source in sources]
    if sources[0].streaming and any(sizes) and not all(sizes):
        raise ValueError(
            f"{given.path}: a stream without end has no size: give `samples` to every source, or `weight`."
        )
    datasets = []
    for number, source in enumerate(sources):
        with named(f"{given.path}, source {number}"):
            datasets.append(_load(source, seed, bad_samples))
    if sources[0].streaming:
        return StreamMixture(datasets, [source.weight or source.samples or 1.0 for source in sources], seed)
    with named(given.path):
        return Mixture(datasets, counts_of(sources, [len(dataset) for dataset in datasets]), seed)


def _load(source: Source, seed: int, bad_samples: BadSamples) -> Dataset | IterableDataset:
    reader = source.reader(seed)
    if source.streaming:
        stream = open_stream(source.path, source.subset, source.split)
        return SampleStream(stream, source.path, reader, seed, bad_samples)
    dataset = ConversationDataset(open_rows(source.path, source.subset, source.split), reader)
    if not len(dataset):
        raise ValueError(f"{source.path} holds no sample; check the path or remove the source.")
    if source.path.endswith((".json", ".jsonl")):
        return dataset.check(bad_samples)
    # Rows of tables and shards hold their images: reading all of them in advance takes too long.
    check_columns(dataset.__getitem__, range(min(len(dataset), FIRST_ROWS)))
    return dataset


def check_columns(read: Callable, rows: Iterable):
    """Raises the first row's error if no row can be read: wrong columns are wrong in all of them."""
    errors = []
    for row in rows:
        try:
            read(row)
        except BrokenSampleError as error:
            errors.append(error)
        else:
            return
    raise errors[0]
