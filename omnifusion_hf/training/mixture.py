# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Sources to one training set: what a mixture file says, how many samples each source gives, and in which order."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import get_args

import numpy as np
from torch.utils.data import Dataset, IterableDataset

from ..io import named, read_text, read_yaml, recipe_path
from .conversations import BadSamples, ConversationDataset, ConversationFormat, SampleReader
from .readers import load_hf_dataset, open_rows
from .streams import SampleStream, StreamMixture


MOST = 10**9  # samples of one pass, of which a mixture's order takes some 40 bytes each


@dataclass
class Source:
    """One entry of a mixture file, docs/data.md.

    samples: how many of its samples a pass over the mixture draws, or `weight`: its share; neither: all once.
    streaming: read on while training, never by index, for what does not fit the disk; `samples` are a share then too.
    """

    path: str
    image_folder: str | None = None
    samples: int | None = None
    weight: float | None = None
    subset: str | None = None
    split: str = "train"
    streaming: bool = False
    columns: dict[str, str] = field(default_factory=dict)
    ignored: Sequence[str] = ()
    instructions: Sequence[str] = ()
    conversation_format: ConversationFormat = "llava"

    def __post_init__(self):
        names = [self.path, self.split, self.image_folder or "", self.subset or ""]
        right = {
            "path, image_folder, subset and split must be texts": _are_texts(names),
            f"samples must be a whole number above 0, at most {MOST:,}": self.samples is None
            or _positive(self.samples, int),
            f"weight must be a number above 0, at most {MOST:,}": self.weight is None
            or _positive(self.weight, int, float),
            "streaming must be true or false": isinstance(self.streaming, bool),
            "columns must be lines `our name: theirs`": isinstance(self.columns, dict)
            and _are_texts([*self.columns, *self.columns.values()]),
            "ignored must be a list of texts": _are_texts(self.ignored),
            "instructions must be a list of texts": _are_texts(self.instructions),
            "conversation_format must be llava or v1.1": self.conversation_format in get_args(ConversationFormat),
        }
        for rule, is_kept in right.items():
            if not is_kept:
                raise ValueError(f"source {self.path}: {rule}; got {self}.")

    def reader(self, max_image_pixels: int, seed: int) -> SampleReader:
        folder = Path(self.image_folder or (Path(self.path).parent if self.path.endswith((".json", ".jsonl")) else ""))
        return SampleReader(
            self.columns,
            folder,
            max_image_pixels,
            self.conversation_format,
            self.instructions,
            seed,
            self.ignored,
        )


def _positive(number, *kinds: type) -> bool:
    return type(number) in kinds and 0 < number <= MOST


def _are_texts(texts) -> bool:
    return isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)


def read_mixture(path: str, defaults: Source) -> list[Source]:
    """The sources of a mixture file. Raises `ValueError` that names the entry for an unknown, missing or odd key."""
    content = read_yaml(read_text(recipe_path(path)), path)
    entries = content.get("sources") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries or list(content) != ["sources"]:
        raise ValueError(f"{path} must hold one list, `sources:`; see docs/data.md.")
    known = {entry.name for entry in fields(Source)}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or "path" not in entry or set(entry) - known:
            raise ValueError(f"{path}, source {number}: needs `path` and takes {sorted(known)}, got {entry!r}.")
    with named(path):
        sources = [replace(defaults, **entry) for entry in entries]
    weighted = [source for source in sources if source.weight is not None]
    if weighted and (len(weighted) < len(sources) or any(source.samples for source in sources)):
        raise ValueError(f"{path}: give `samples` or nothing to each source, or a `weight` to every one.")
    return sources


class Mixture(Dataset):
    """Raw samples of several sources in an order that is a function of `seed` alone.

    counts: how many samples each source gives. They are drawn without replacement; a source that is used up starts
        over, so that no sample comes a second time before all came once.
    """

    def __init__(self, datasets: Sequence[Dataset], counts: Sequence[int], seed: int):
        self.datasets, self.counts = datasets, counts
        order = np.random.default_rng(seed).permutation(sum(counts))
        self.sources = np.repeat(np.arange(len(datasets)), counts)[order]
        drawn = [_draw(len(dataset), count, [seed, i]) for i, (dataset, count) in enumerate(zip(datasets, counts))]
        self.rows = np.concatenate(drawn)[order]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.datasets[self.sources[index]][int(self.rows[index])]

    def peek(self, index: int) -> dict:
        """An item with its images not yet opened."""
        return self.datasets[self.sources[index]].peek(int(self.rows[index]))

    def identity(self) -> list[dict]:
        known = [each.identity()[0] for each in self.datasets]
        return [one | {"drawn": count} for one, count in zip(known, self.counts)]


def _draw(size: int, count: int, seed: list[int]) -> np.ndarray:
    """`count` rows out of `size`, each as often as any other or once more."""
    generator, rows = np.random.default_rng(seed), np.empty(count, np.int64)
    for start in range(0, count, size):
        rows[start : start + size] = generator.permutation(size)[: count - start]
    return rows


def counts_of(sources: Sequence[Source], sizes: Sequence[int]) -> list[int]:
    """Samples that each source gives. Weights share out as many as there are in all sources.

    Raises `ValueError` for a weight that is less than one sample, and for more samples than `MOST`.
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
            f"{path}: weight {weight} of {total} is no sample out of {sum(sizes)}; raise it or remove it."
        )
    return counts


def load_data(given: Source, max_image_pixels: int, seed: int, bad_samples: BadSamples) -> Dataset | IterableDataset:
    """Raw samples of one source, or of the mixture file (.yaml) that `given.path` is.

    Returns a map-style dataset, or an endless stream where the sources are `streaming`.
    Raises `ValueError` for sources of both kinds, and what the sources raise.
    """
    if not given.path.endswith((".yaml", ".yml")):
        return _load(given, max_image_pixels, seed, bad_samples)
    sources = read_mixture(given.path, given)
    if len({source.streaming for source in sources}) == 2:
        raise ValueError(f"{given.path} mixes streams with others; stream all sources or none.")
    datasets = [_load(source, max_image_pixels, seed, bad_samples) for source in sources]
    if sources[0].streaming:
        return StreamMixture(datasets, [source.weight or source.samples or 1.0 for source in sources], seed)
    return Mixture(datasets, counts_of(sources, [len(dataset) for dataset in datasets]), seed)


def _load(source: Source, max_image_pixels: int, seed: int, bad_samples: BadSamples) -> Dataset | IterableDataset:
    reader = source.reader(max_image_pixels, seed)
    if source.streaming:
        stream = load_hf_dataset(source.path, source.subset, source.split, streaming=True)
        return SampleStream(stream, source.path, reader, seed, bad_samples)
    dataset = ConversationDataset(open_rows(source.path, source.subset, source.split), reader)
    if not len(dataset):
        raise ValueError(f"{source.path} holds no sample; check the path or remove the source.")
    # A table's rows hold their images and a shard's lie apart: reading all of them beforehand takes too long.
    return dataset.check(bad_samples) if source.path.endswith((".json", ".jsonl")) else dataset
