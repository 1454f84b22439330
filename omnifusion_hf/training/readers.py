# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Files to rows: LLaVA JSON and JSONL, WebDataset tar shards, Hugging Face datasets (memory-mapped or streamed).

All but streams are read by index, so that `Trainer` can shuffle, mix and resume them exactly.
"""

import csv
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from glob import escape, glob
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..io import named, read_json, read_text
from ..model.image_processing_omnifusion import is_image
from .conversations import Rows, only_one


BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".jsonl": "json", ".json": "json"}
BUILDERS |= {".csv": "csv", ".tsv": "csv"}
MOST_SHARDS = 64  # of a streamed folder of captions, for as many loader workers


class JsonRows:
    """LLaVA's format: a file that holds one list of samples."""

    def __init__(self, path: Path):
        self.path, self.files = path, [path]
        self.samples = read_json(read_text(path), f"{path} must be one list of samples (one sample a line: .jsonl)")
        if not isinstance(self.samples, list) or not self.samples:
            given = "an empty list" if self.samples == [] else type(self.samples).__name__
            raise ValueError(f"{path} must hold a list with at least one sample, got {given}.")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        return self.samples[index]

    def place(self, index: int) -> str:
        return f"{self.path}, sample {index}"


class JsonLinesRows:
    """One sample per line. Blank lines are skipped; a line is parsed when its row is read."""

    def __init__(self, path: Path):
        self.path, self.files = path, [path]
        lines = enumerate(read_text(path).split("\n"), start=1)
        self.lines = [(number, line) for number, line in lines if line.strip()]
        if not self.lines:
            raise ValueError(f"{path} must hold at least one line with a sample.")

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> dict:
        return json.loads(self.lines[index][1])

    def place(self, index: int) -> str:
        return f"{self.path}, line {self.lines[index][0]}"


class TarRows:
    """WebDataset shards: neighbouring members of one key (the name up to the first dot) are a sample.

    An index holds the start of each sample. Nothing is unpacked; samples may have different members.
    """

    def __init__(self, paths: list[Path]):
        self.files = paths
        starts = [_sample_starts(path) for path in tqdm(paths, desc="indexing shards", leave=False, disable=None)]
        self.starts = np.concatenate(starts)  # bytes into the shard
        self.shards = np.repeat(np.arange(len(paths)), [len(each) for each in starts])
        self.first = np.cumsum([0, *(len(each) for each in starts)])  # index of each shard's first sample

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict:
        members = {}
        with _Shard(self.files[self.shards[index]]) as file:
            file.seek(self.starts[index])
            for key, name, member, tar in _members(tarfile.open(fileobj=file, mode="r:")):
                if members.setdefault("__key__", key) != key:
                    break
                if member.issparse():  # reading would allocate the size that its header claims
                    raise ValueError(
                        f"{member.name} is a sparse member of {member.size} bytes; store it as a plain file."
                    )
                members[name] = tar.extractfile(member).read()
        return row_of_members(members)

    def place(self, index: int) -> str:
        shard = self.shards[index]
        return f"{self.files[shard]}, sample {index - self.first[shard]}"


class _Shard(io.FileIO):
    """A file that reads at most its own size. Python allocates what a header claims, which may be terabytes."""

    def read(self, size: int = -1) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(left if size < 0 else max(0, min(size, left)))


def _sample_starts(path: Path) -> np.ndarray:
    """Byte offsets of the first header of each sample in a shard."""
    starts, last = [], None
    with named(f"{path} is not a complete, uncompressed tar file; decompress or copy it again"), _Shard(path) as file:
        tar = tarfile.open(fileobj=file, mode="r:")
        for key, _, member, _ in _members(tar):
            if key != last:
                starts.append(member.offset)
            last = key
        file.seek(tar.offset)  # tarfile takes a damaged header for the end
        if file.read(2**16).strip(b"\0"):
            raise ValueError(f"data follows the end or a damaged header at byte {tar.offset}.")
    return np.array(starts, dtype=np.int64)


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo, tarfile.TarFile]]:
    """Key and rest of the name of each file in a shard: `a/b.0.png` gives ("a/b", "0.png")."""
    last = -1
    for member in tar:
        if member.offset <= last:  # a negative size would loop forever
            raise ValueError(f"{member.name}: its header points back to an earlier one.")
        last = member.offset
        folder, slash, name = member.name.rpartition("/")
        key, dot, rest = name.partition(".")
        if member.isfile() and key and dot:
            yield folder + slash + key, rest.lower(), member, tar


def row_of_members(members: dict[str, Any]) -> dict:
    """A WebDataset sample as a row: the fields of its .json, its .txt as the caption, its images in their order.

    Raises `ValueError` if the .json lists another number of images than the shard holds.
    """
    row, images = {"id": members["__key__"]}, {}
    for name, value in members.items():
        extension = name.rpartition(".")[-1]
        if value is None:
            continue
        if extension == "json":
            fields = read_json(value, "its .json") if isinstance(value, bytes | str) else value
            if not isinstance(fields, dict):
                raise ValueError(f"its .json must hold an object, got {type(fields).__name__}.")
            row |= fields
        elif extension == "txt":
            text = value.decode("utf-8") if isinstance(value, bytes) else value
            row["caption"] = text.removeprefix("\ufeff").strip()  # files end in a newline, which is no part of it
        elif is_image(Path(f"_.{extension}")):
            images[name] = value
        elif not name.startswith("__"):
            row[name] = value  # refused later, as a column that nothing reads
    listed = only_one(row, "image", "images") or list(images)
    listed = listed if isinstance(listed, list) else [listed]
    if len(listed) != len(images):
        raise ValueError(f"its .json lists {len(listed)} images, the shard holds {len(images)}.")
    return row | {"image": None, "images": [images[name] for name in order_of(images, listed)]}


def order_of(names: Iterable[str], listed: list) -> list[str]:
    """Names of images, such as `0.png`, in the order of a list of them, else by their numbers, else as they are."""
    wanted = [Path(str(name)).name.partition(".")[2].lower() for name in listed]
    if sorted(wanted) == sorted(names):
        return wanted
    if all(name.partition(".")[0].isdecimal() for name in names):
        return sorted(names, key=lambda name: int(name.partition(".")[0]))
    return list(names)


class CaptionedImages:
    """A folder of images, each with a `.txt` file of the same name that holds its caption."""

    def __init__(self, folder: Path):
        texts = {path.with_suffix(""): path for path in sorted(folder.rglob("*.txt"))}
        images = [path for path in sorted(folder.rglob("*")) if is_image(path)]
        self.pairs = [(image, texts[image.with_suffix("")]) for image in images if image.with_suffix("") in texts]
        if len(self.pairs) < max(len(images), len(texts)):
            named = {image.with_suffix("") for image, _ in self.pairs}
            odd = next(path for path in [*images, *texts.values()] if path.with_suffix("") not in named)
            raise ValueError(f"{odd} has no partner: each image of {folder} needs a .txt file of its name.")
        self.files = [text for _, text in self.pairs]  # not the images, which may be many

    @classmethod
    def are_in(cls, folder: Path) -> bool:
        """Whether a .txt file is an image's; those of tables are licences and notes."""
        names = {path.with_suffix("") for path in folder.rglob("*.txt")} if folder.is_dir() else set()
        images = (path for path in folder.rglob("*") if is_image(path))
        return bool(names) and any(image.with_suffix("") in names for image in images)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        image, text = self.pairs[index]
        return {"image": str(image.resolve()), "caption": read_text(text).strip()}

    def place(self, index: int) -> str:
        return str(self.pairs[index][0])


class ArrowRows:
    """A Hugging Face dataset on disk. Its images stay encoded."""

    def __init__(self, dataset, path: str):
        self.dataset, self.path = undecoded(dataset), path
        self.classes = classes_of(dataset)
        found = [Path(path), *Path(path).rglob("*")] if Path(path).exists() else map(Path, glob(path))
        tables = (".parquet", ".arrow", ".json", ".jsonl", ".csv", ".tar")  # not the images of a folder
        self.files = sorted(file for file in found if file.suffix in tables and file.is_file())

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        return row_of_dataset(self.dataset[index], self.classes)

    def place(self, index: int) -> str:
        return f"{self.path}, row {index}"


def undecoded(dataset):
    """The dataset with images as `{"bytes", "path"}`: later they are decoded with our limits, and named if broken."""
    from datasets import Image as ImageFeature
    from datasets import List

    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, ImageFeature):
            dataset = dataset.cast_column(name, ImageFeature(decode=False))
        elif isinstance(getattr(feature, "feature", None), ImageFeature):
            dataset = dataset.cast_column(name, List(ImageFeature(decode=False)))
    return dataset


def classes_of(dataset) -> dict[str, Callable]:
    """The functions that name the numbers of a dataset's classes, by column: folders by class have a `label`."""
    from datasets import ClassLabel

    columns = (dataset.features or {}).items()
    return {name: feature.int2str for name, feature in columns if isinstance(feature, ClassLabel)}


def row_of_dataset(row: dict, classes: dict[str, Callable]) -> dict:
    """A dataset's row, classes as text. The columns of a WebDataset are a sample's members, see [`row_of_members`]."""
    for column, name in classes.items():
        number = row[column]  # -1 where the class is unknown
        row = row | {column: None if number is None or number < 0 else name(number)}
    return row_of_members(row) if "__key__" in row else row


def open_rows(path: str, subset: str | None = None, split: str = "train") -> Rows:
    """The rows of `path`: a .json, .jsonl or .tar file, a pattern of .tar files, or a Hugging Face dataset.

    Raises `ValueError` if it does not exist or cannot be read.
    """
    suffix = Path(path).suffix
    if suffix == ".tar":
        return TarRows(_existing(path))
    if suffix in (".json", ".jsonl"):
        file, *more = _existing(path)
        if more:
            raise ValueError(f"{path} matches {1 + len(more)} files; list them as sources of a mixture, docs/data.md.")
        return JsonRows(file) if suffix == ".json" else JsonLinesRows(file)
    if CaptionedImages.are_in(Path(path)):
        return CaptionedImages(Path(path))
    return ArrowRows(load_hf_dataset(path, subset, split), path)


def open_stream(path: str, subset: str | None = None, split: str = "train"):
    """The rows of `path` in sequence, as a Hugging Face dataset. Raises `ValueError` if it cannot be read."""
    if CaptionedImages.are_in(Path(path)):
        pairs = [{"image": str(image), "text": str(text)} for image, text in CaptionedImages(Path(path)).pairs]
        names = import_datasets(path).Dataset.from_list(pairs).to_iterable_dataset(min(len(pairs), MOST_SHARDS))
        return names.map(members_of, remove_columns=["image", "text"])
    return load_hf_dataset(path, subset, split, streaming=True)


def members_of(pair: dict) -> dict:
    """The files of a captioned image, as of a WebDataset."""
    image, text = Path(pair["image"]), Path(pair["text"])
    return {"__key__": str(image), image.suffix[1:].lower(): image.read_bytes(), "txt": text.read_bytes()}


def _existing(pattern: str) -> list[Path]:
    paths = [pattern] if Path(pattern).exists() else sorted(glob(pattern))  # a name may hold brackets
    if not paths:
        raise ValueError(f"no file {pattern}; check the path.")
    return [Path(path) for path in paths]


def table_options(files: str) -> dict:
    """Settings of `datasets` by which every cell is text: "None", "NA" and "3" are answers."""
    from datasets import Features, Value

    separator = "\t" if files.endswith(".tsv") else ","
    options = {"sep": separator, "keep_default_na": False}
    if "://" in files:
        return options
    with open(_existing(files)[0], encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file, delimiter=separator), [])
    return options | {"features": Features({name: Value("string") for name in header})}


def import_datasets(path: str):
    try:
        import datasets
    except ImportError:
        raise ValueError(f"reading {path} needs the datasets package: pip install 'omnifusion_hf[data]'.") from None
    return datasets


def load_hf_dataset(path: str, subset: str | None = None, split: str = "train", streaming: bool = False):
    """A dataset from a folder (of files, or of `save_to_disk`), a pattern of files or a Hub id.

    Raises `ValueError` that names `path`, also if the package `datasets` is missing.
    """
    datasets = import_datasets(path)
    builder = BUILDERS.get(Path(path).suffix)
    if Path(path).is_dir():
        path = str(Path(path).resolve())  # a name such as imagefolder would be that of a reader, for all that is here
    files = escape(path) if Path(path).exists() else path  # a name may hold brackets
    options = {"path": builder, "data_files": files} if builder else {"path": path, "name": subset}
    kinds = "(data_path is a .json, .jsonl, .tar, .parquet, .csv or .yaml file, a folder or a Hub id, docs/data.md)"
    with named(f"cannot read {path}", advice=f" {kinds}"):
        options |= table_options(files) if builder == "csv" else {}
        if (Path(path) / "state.json").is_file():
            dataset = datasets.load_from_disk(path)
            return dataset.to_iterable_dataset() if streaming else dataset
        return datasets.load_dataset(**options, split=split, streaming=streaming)
