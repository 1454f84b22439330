# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""One row of training data to chat messages: where images go, what is refused; images open when asked for.

A row is what sources.py reads from any format: `conversations` (LLaVA), `messages` (chat) or a `caption`.
"""

import multiprocessing
import os
import random
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers.utils import logging

from ..io import named
from ..model.image_processing_omnifusion import load_image
from ..model.views_omnifusion import read_region, regions_per_image
from .fingerprints import as_bytes, content_hash


ConversationFormat = Literal["llava", "v1.1"]
BadSamplePolicy = Literal["error", "skip"]
ImageSource = str | bytes | dict | Image.Image
IMAGE_MARK = "<image>"
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
READ = {"id", "image", "images", "conversations", "messages", "caption", "regions"}
# What well-known sets say of their samples' origin: nothing of it was ever meant to be trained on.
PROVENANCE = {
    *("task", "category", "source", "dataset", "split", "model", "score", "license", "language", "url", "key"),
    *("width", "height", "original_width", "original_height", "exif", "hash", "md5", "sha256", "status"),
    *("error_message", "similarity", "punsafe", "pwatermark", "aesthetic"),
}
logger = logging.get_logger(__name__)


class BrokenSampleError(ValueError):
    """A sample that cannot be trained on whole; the message begins with where it comes from."""


class BadSamples:
    """What becomes of broken samples: `"error"` raises the first, `"skip"` passes them over and logs each by name.

    `count` says how many were skipped, data-loading workers included. Raises `ValueError` after `most_in_a_row` of
    them without a good one: then it is not the samples that are wrong.
    """

    most_in_a_row = 1000

    def __init__(self, policy: BadSamplePolicy = "error"):
        self.policy = policy
        self.in_a_row = 0
        # A lock of the spawning kind can be sent to workers of every kind.
        self._count = multiprocessing.get_context("spawn").Value("q", 0)

    @property
    def count(self) -> int:
        return self._count.value

    def report(self, error: BrokenSampleError):
        if self.policy == "error":
            raise error
        with self._count.get_lock():
            self._count.value += 1
            logger.warning(f"skipped {self._count.value} so far: {error}")
        self.in_a_row += 1
        if self.in_a_row >= self.most_in_a_row:
            raise ValueError(f"{self.in_a_row} broken samples in a row, the last: {error}")

    def good(self):
        self.in_a_row = 0


def map_good(function: Callable, items: Iterable, bad_samples: BadSamples) -> Iterator:
    """`function` of each item, without those for which it raises [`BrokenSampleError`]."""
    for item in items:
        try:
            result = function(item)
        except BrokenSampleError as error:
            bad_samples.report(error)
        else:
            bad_samples.good()
            yield result


class Rows(Protocol):
    """What a file holds, row by row. Reading one may raise anything, which need not say where."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...

    def place(self, index: int) -> str:
        """File and index (JSONL: line), for messages."""

    @property
    def files(self) -> list[Path]:
        """Where they lie; empty where that is not known."""


@dataclass
class SampleReader:
    """Reads a row into a raw sample: `{"name", "messages": with PIL images, "regions": one list for each image}`.

    `<image>` in a user turn says where the next image stands; without any mark images stand in front of the first
    user turn. In a sample without images, and in answers, `<image>` is text. Optional `"regions"` hold one list of
    boxes per image, `[[[left, top, right, bottom], …], …]` in pixels, that become views.

    columns: our names of columns to those of the data, such as `{"caption": "blip_caption"}`.
    ignored: columns that are passed over; any other that nothing reads, and that is none of `PROVENANCE`, is refused.
    image_folder: what names of image files are relative to.
    max_image_pixels: images that declare more are refused, as in the image processor.
    conversation_format: `"llava"` as above; `"v1.1"` as the authors' release trained: `<image>` is always text and
        images stand in front of the first user turn.
    instructions: for captions (the paper's stage 1): the question is one of these, drawn by `seed` and the caption.

    Raises [`BrokenSampleError`] that begins with the sample's name.
    """

    columns: dict[str, str] = field(default_factory=dict)
    image_folder: Path = Path()
    max_image_pixels: int = 2**27
    conversation_format: ConversationFormat = "llava"
    instructions: Sequence[str] = ()
    seed: int = 0
    ignored: Sequence[str] = ()

    def __call__(self, row: dict, place: str) -> dict:
        sample = self.check(row, place)
        for part in _image_parts(sample["messages"]):
            part["image"] = self._open(part["image"], sample["name"])
        return sample

    def check(self, row: dict, place: str) -> dict:
        """The raw sample with its images not yet opened, but looked for."""
        with named(place, BrokenSampleError):
            has_id = isinstance(row, dict) and row.get("id") is not None
            name = f"{place} (id {str(row['id'])[:100]})" if has_id else place
        with named(name, BrokenSampleError):
            row = self._renamed(row)
            messages = to_messages(row, self.conversation_format, self.instructions, self.seed)
            for part in _image_parts(messages):
                self._check_file(part["image"])
            return {"messages": messages, "regions": regions_of(row), "name": name}

    def peek(self, row: dict, place: str) -> dict:
        """The raw sample with its images not yet opened: each a file's path, its bytes or an image."""
        sample = self.check(row, place)
        for part in _image_parts(sample["messages"]):
            part["image"] = self._source(part["image"])
        return sample

    def _renamed(self, row: dict) -> dict:
        if not isinstance(row, dict):
            raise ValueError(f"a sample must be an object, got {type(row).__name__}.")
        if missing := [name for name in self.columns.values() if name not in row]:
            raise ValueError(f"no column {missing[0]!r}; there are {sorted(row)}.")
        left = {*self.columns.values(), *self.ignored}
        others = {name: value for name, value in row.items() if name not in left}
        row = others | {ours: row[theirs] for ours, theirs in self.columns.items()}
        _check_read(row, READ | PROVENANCE, "the sample")
        return row

    def _check_file(self, image: ImageSource):
        path = _file_of(image, self.image_folder)
        if path is not None and not os.path.isfile(path):  # False, too, for what can be no name: base64, say
            raise ValueError(
                f"no image file {str(path)[:200]}; set image_folder to the folder that the sample's `image` is "
                "relative to."
            )

    def _open(self, image: ImageSource, name: str) -> Image.Image:
        path = _file_of(image, self.image_folder)
        try:
            return load_image(self._source(image), self.max_image_pixels)
        except ValueError as error:
            reason = str(error.__cause__ or "") or error
            raise BrokenSampleError(f"{name}: cannot read {path or 'an image'}: {reason}") from error

    def _source(self, image: ImageSource) -> Path | bytes | Image.Image:
        return _file_of(image, self.image_folder) or (image["bytes"] if isinstance(image, dict) else image)


class ConversationDataset(Dataset):
    """Rows as raw samples; item `index` is what [`SampleReader`] makes of that row, its images opened then."""

    def __init__(self, rows: Rows, reader: SampleReader):
        self.rows, self.reader = rows, reader
        self.indices: Sequence[int] = range(len(rows))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        return self._read(self.indices[index], self.reader)

    def peek(self, index: int) -> dict:
        """An item with its images not yet opened, see [`SampleReader.peek`]."""
        return self._read(self.indices[index], self.reader.peek)

    def identity(self) -> list[dict]:
        """What a run that goes on must find again: their number and their content; at the most 64 of them are read."""
        indices = np.linspace(0, len(self) - 1, min(64, len(self))).astype(int)
        return [{"samples": len(self), "content": content_hash(self.rows.files, map(self._as_bytes, indices))}]

    def _as_bytes(self, index: int) -> bytes:
        try:
            return as_bytes({**self.peek(index), "name": None})
        except BrokenSampleError:
            return b""

    def _read(self, index: int, read):
        place = self.rows.place(index)
        with named(place, BrokenSampleError):
            row = self.rows[index]
        return read(row, place)

    def check(self, bad_samples: BadSamples) -> "ConversationDataset":
        """Checks all that needs no opened image, so that a mistake costs seconds and not a night's run."""
        indices = tqdm(range(len(self.rows)), desc="checking samples", leave=False, disable=None)
        self.indices = list(map_good(self._check, indices, bad_samples))
        if not self.indices:
            raise ValueError(f"No sample from {self.rows.place(0)} on can be used; the log says why.")
        return self

    def _check(self, index: int) -> int:
        self._read(index, self.reader.check)
        return index


def to_messages(
    row: dict, conversation_format: ConversationFormat = "llava", instructions: Sequence[str] = (), seed: int = 0
) -> list[dict]:
    """One row as chat messages, see [`SampleReader`]; image parts hold the image as the row does.

    Raises `ValueError` that does not name the sample.
    """
    turns = _caption_turns(row, instructions, seed) if instructions else _turns(row)
    _check_order([role for role, _ in turns])
    images = images_of(row)
    marked = images and conversation_format == "llava"
    pieces = [_pieces(role, content, marked) for role, content in turns]
    marks = sum(len(piece) - 1 for piece in pieces)
    if images and not marks:
        first = next(i for i, (role, _) in enumerate(turns) if role == "user")
        pieces[first] = [""] * len(images) + pieces[first]
    elif marks != len(images):
        raise ValueError(f"{marks} `{IMAGE_MARK}` marks in human turns for {len(images)} images.")
    remaining = iter(images)
    return [{"role": role, "content": _content(role, piece, remaining)} for (role, _), piece in zip(turns, pieces)]


def images_of(row: dict) -> list[ImageSource]:
    """`image` or `images`: one image or a list, each a file's name, bytes, `{"bytes", "path"}` or a PIL image."""
    given = only_one(row, "image", "images")
    images = given if isinstance(given, list) else [] if given in (None, "") else [given]
    if unknown := [image for image in images if not isinstance(image, ImageSource)]:
        raise ValueError(f"an image must be a file's name, bytes or an image, got {unknown[0]!r}.")
    return images


def only_one(row: dict, *names: str):
    """The one of these columns that holds something, or else None. Raises `ValueError` where two do."""
    given = [name for name in names if not _is_empty(row.get(name))]
    if len(given) > 1:
        raise ValueError(f"the sample has {' and '.join(given)}, which mean the same; keep one.")
    return row[given[0]] if given else None


def _is_empty(value) -> bool:
    """Tables fill a column that a row has not by null, some sets by an empty text or list."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def _check_read(given: dict, read: Container[str], what: str):
    """Raises `ValueError` for keys that nothing reads: what they say would be lost."""
    if unread := [key for key, value in given.items() if key not in read and not _is_empty(value)]:
        raise ValueError(
            f"{what} has {', '.join(map(str, unread))}, which nothing reads; remove it, or name a column under "
            "`ignored` of a mixture's source, docs/data.md."
        )


def regions_of(row: dict) -> list[list]:
    """One list of boxes per image of a sample. `ValueError` for another number of lists or for what is no box."""
    regions = regions_per_image(row.get("regions") or [], [len(images_of(row))])
    for box in (box for boxes in regions for box in boxes):
        read_region(box)
    return regions


def _file_of(image: ImageSource, image_folder: Path) -> Path | None:
    """The file that an image is in, `None` where it is at hand as bytes or an image."""
    if isinstance(image, dict) and image.get("bytes") is None:
        image = image.get("path") or ""
    return image_folder / image if isinstance(image, str) else None


def _image_parts(messages: list[dict]) -> Iterator[dict]:
    return (part for message in messages for part in message["content"] if part["type"] == "image")


def _turns(row: dict) -> list[tuple[str, str | list]]:
    """Role and content of each turn; content is text or a list of a chat message's parts."""
    only_one(row, "conversations", "messages")
    forms = (("conversations", "from", "value"), ("messages", "role", "content"))
    for column, role, content in sorted(forms, key=lambda form: _is_empty(row.get(form[0]))):
        if isinstance(row.get(column), list):
            return [_role_and_content(turn, role, content) for turn in row[column]]
    raise ValueError(
        f'a sample needs a list "conversations" or "messages" (or a caption with instructions), got {list(row)}.'
    )


def _role_and_content(turn: dict, role_key: str, content_key: str) -> tuple[str, str | list]:
    role, content = (turn.get(role_key), turn.get(content_key)) if isinstance(turn, dict) else (None, None)
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"unknown role {role!r} in a turn; use one of {list(ROLES)}.")
    if not isinstance(content, str | list):
        raise ValueError(f"the {role} turn's {content_key} must be text, got {content!r}.")
    _check_read(turn, {role_key, content_key}, f"the {role} turn")
    return ROLES[role], content


def _caption_turns(row: dict, instructions: Sequence[str], seed: int) -> list[tuple[str, str]]:
    """An instruction and the sample's `caption` or the only answer of its conversation."""
    caption = row.get("caption")
    answers = [content for role, content in _turns(row) if role == "assistant"] if caption is None else [caption]
    if len(answers) != 1 or not isinstance(answers[0], str):
        raise ValueError(f"instructions are for captions, one answer of text, got {answers}.")
    return [("user", random.Random(f"{seed} {answers[0]}").choice(instructions)), ("assistant", answers[0])]


def _check_order(roles: list[str]):
    dialogue = roles[1:] if roles[:1] == ["system"] else roles
    if not dialogue or len(dialogue) % 2 or dialogue != ["user", "assistant"] * (len(dialogue) // 2):
        raise ValueError(
            f"turns must alternate, human first and gpt last (one system turn may open them), got {roles}."
        )


def _pieces(role: str, content: str | list, marked: bool) -> list[str]:
    """Text before, between and after a turn's images, without the newline that LLaVA puts beside a mark."""
    pieces, has_marks = [""], marked and role == "user"
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            _check_read(part, {"type", "text"}, f"a part of the {role} turn")
            first, *rest = re.split(rf"\n?{IMAGE_MARK}\n?", part["text"]) if has_marks else [part["text"]]
            pieces = [*pieces[:-1], pieces[-1] + first, *rest]
        elif kind == "image" and role == "user":
            _check_read(part, {"type"}, f"an image of the {role} turn")
            pieces.append("")
        else:
            raise ValueError(f"a part of the {role} turn is neither text nor a user's image: {part!r}.")
    return pieces


def _content(role: str, pieces: list[str], images: Iterator[ImageSource]) -> list[dict]:
    """Text parts with the next image between each two of them."""
    parts = [{"type": "text", "text": pieces[0]}]
    for piece in pieces[1:]:
        parts += [{"type": "image", "image": next(images)}, {"type": "text", "text": piece}]
    parts = [part for part in parts if part.get("text") != ""]
    if not any(part["type"] == "image" or part["text"].strip() for part in parts):
        raise ValueError(f"an empty {role} turn; remove the sample or fill the turn.")
    text = "".join(part.get("text", "") for part in parts)
    text.encode()  # raises for half of a pair of surrogates, which no tokenizer takes
    if "\0" in text:
        raise ValueError(f"the {role} turn holds NUL characters, as text has that is not UTF-8; convert the file.")
    return parts
