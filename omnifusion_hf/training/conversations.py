# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""One row of training data to chat messages: where images go and what is refused.

A row is what readers.py reads from any format: `conversations` (LLaVA), `messages` (chat) or a `caption`.
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
from ..model.image_processing_omnifusion import load_image, local_path
from ..model.views_omnifusion import read_region, regions_per_image
from .identity import as_bytes, content_hash
from .row_forms import canonical


ConversationFormat = Literal["llava", "v1.1"]
BadSamplePolicy = Literal["error", "skip"]
ImageSource = str | bytes | dict | Image.Image
IMAGE_MARK = "<image>"
# The questions for captions of sources without `instructions`.
DESCRIBE = ("Describe the image.", "Give a brief description of the image.", "What is in the image?")
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
READ = {"id", "image", "images", "conversations", "messages", "caption", "regions"}
# Columns in which well-known sets note the origin of a sample. They are not training data.
PROVENANCE = {
    *("task", "category", "source", "dataset", "split", "model", "score", "license", "language", "url", "key"),
    *("width", "height", "original_width", "original_height", "exif", "hash", "md5", "sha256", "status"),
    *("error_message", "similarity", "punsafe", "pwatermark", "aesthetic"),
}
logger = logging.get_logger(__name__)


class BrokenSampleError(ValueError):
    """A sample that cannot be used whole. The message begins with the sample's place."""


class BadSamples:
    """The policy for broken samples: `"error"` raises the first, `"skip"` passes over each and logs its name.

    `count` is the number of skipped samples, data-loading workers included. Raises `ValueError` after `most_in_a_row`
    of them without a good one, because then the settings are wrong and not the samples.
    """

    most_in_a_row = 1000

    def __init__(self, policy: BadSamplePolicy = "error"):
        self.policy = policy
        self.in_a_row = 0
        # A lock of the spawn context can be sent to workers of every start method.
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
    """`function(item)` for each item, without items for which it raises [`BrokenSampleError`]."""
    for item in items:
        try:
            result = function(item)
        except BrokenSampleError as error:
            bad_samples.report(error)
        else:
            bad_samples.good()
            yield result


class Rows(Protocol):
    """The rows of a file. Reading one may raise any error; the message need not name the place."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...

    def place(self, index: int) -> str:
        """File and index (JSONL: line) of a row, for messages."""

    @property
    def files(self) -> list[Path]:
        """The files of the rows; empty if unknown."""


@dataclass
class SampleReader:
    """Reads a row into a raw sample: `{"name", "messages", "regions": one list of boxes per image}`.

    An image part of `messages` holds a file's path, bytes or a PIL image. The file exists, but it is not opened yet:
    [`open_images`] does that.

    `<image>` in a user turn marks the place of the next image. Without any mark, images come before the first user
    turn. In a sample without images, and in answers, `<image>` is text. Optional `"regions"` hold one list of boxes
    per image, `[[[left, top, right, bottom], …], …]` in pixels, that become views.

    columns: our names of columns to those of the data, such as `{"caption": "blip_caption"}`.
    ignored: columns to pass over. Any other column that nothing reads, and that is not in `PROVENANCE`, is refused.
    image_folder: the folder that names of image files are relative to.
    conversation_format: `"llava"` as above. `"v1.1"` as the authors' release trained: `<image>` is always text and
        images come before the first user turn.
    instructions: for captions (the paper's stage 1). The question is one of these, drawn by `seed` and the caption.

    Raises [`BrokenSampleError`] that begins with the sample's name.
    """

    columns: dict[str, str] = field(default_factory=dict)
    image_folder: Path = Path()
    conversation_format: ConversationFormat = "llava"
    instructions: Sequence[str] = ()
    seed: int = 0
    ignored: Sequence[str] = ()

    def __call__(self, row: dict, place: str) -> dict:
        with named(place, BrokenSampleError):
            row = self.renamed(row)
        return self.read(row, place)

    def read(self, row: dict, place: str) -> dict:
        """The sample of a renamed row."""
        name = place if row.get("id") is None else f"{place} (id {str(row['id'])[:100]})"
        with named(name, BrokenSampleError):
            row = canonical(row)
            _check_read(row, READ | PROVENANCE, "the sample")
            messages = to_messages(row, self.conversation_format, self.instructions, self.seed)
            for message in messages:
                for part in message["content"]:
                    if part["type"] == "image":
                        part["image"] = self._source(part["image"])
            return {"messages": messages, "regions": regions_of(row), "name": name}

    def renamed(self, row: dict, optional: Container[str] = ()) -> dict:
        """The row with our names of columns, without those to pass over. Columns that are not `optional` must be
        there."""
        if not isinstance(row, dict):
            raise ValueError(f"a sample must be an object, got {type(row).__name__}.")
        if missing := [theirs for ours, theirs in self.columns.items() if not (theirs in row or ours in optional)]:
            raise ValueError(f"no column {missing[0]!r}; there are {sorted(row)}.")
        left = {*self.columns.values(), *self.ignored}
        others = {name: value for name, value in row.items() if name not in left}
        return others | {ours: row[theirs] for ours, theirs in self.columns.items() if theirs in row}

    def _source(self, image: ImageSource) -> Path | str | bytes | Image.Image:
        if isinstance(image, dict):
            image = image["bytes"] if image.get("bytes") is not None else image.get("path") or ""
        if not isinstance(image, str):
            _check_image(image)
            return image
        if image.startswith(("data:", "http://", "https://")):
            return image
        path = self.image_folder / local_path(image)
        if not os.path.isfile(path):  # also False for what cannot be a name, such as base64
            raise ValueError(
                f"no image file {str(path)[:200]}; set image_folder to the folder that the sample's `image` is "
                "relative to."
            )
        return path


def open_images(sample: dict, max_image_pixels: int) -> list[dict]:
    """The messages of a raw sample with their images as RGB images.

    Raises [`BrokenSampleError`] for an image that cannot be read or declares more than `max_image_pixels`.
    """
    return [
        message | {"content": [_opened(part, sample["name"], max_image_pixels) for part in message["content"]]}
        for message in sample["messages"]
    ]


def _opened(part: dict, name: str, max_image_pixels: int) -> dict:
    if part["type"] != "image":
        return part
    try:
        return part | {"image": load_image(part["image"], max_image_pixels)}
    except ValueError as error:
        file = part["image"] if isinstance(part["image"], Path) else "an image"
        reason = str(error.__cause__ or "") or error
        raise BrokenSampleError(f"{name}: cannot read {file}: {reason}") from error


class ConversationDataset(Dataset):
    """Rows as raw samples: item `index` is what [`SampleReader`] reads from that row."""

    def __init__(self, rows: Rows, reader: SampleReader):
        self.rows, self.reader = rows, reader
        self.indices: Sequence[int] = range(len(rows))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        return self._read(self.indices[index])

    def _read(self, index: int) -> dict:
        place = self.rows.place(index)
        with named(place, BrokenSampleError):
            row = self.rows[index]
        return self.reader(row, place)

    def identity(self) -> list[dict]:
        """For a resumed run: the number of samples and a hash of their content, of which at most 64 are read."""
        indices = np.linspace(0, len(self) - 1, min(64, len(self))).astype(int)
        return [{"samples": len(self), "content": content_hash(self.rows.files, map(self._as_bytes, indices))}]

    def _as_bytes(self, index: int) -> bytes:
        try:
            return as_bytes({**self[index], "name": None})
        except BrokenSampleError:
            return b""

    def check(self, bad_samples: BadSamples) -> "ConversationDataset":
        """Reads every row once, so that a mistake costs seconds and not a night's run. Opens no image."""

        def checked(index: int) -> int:
            self._read(index)
            return index

        indices = tqdm(range(len(self.rows)), desc="checking samples", leave=False, disable=None)
        self.indices = list(map_good(checked, indices, bad_samples))
        if not self.indices:
            raise ValueError(f"No sample from {self.rows.place(0)} on can be used; the log says why.")
        return self


def to_messages(
    row: dict, conversation_format: ConversationFormat = "llava", instructions: Sequence[str] = (), seed: int = 0
) -> list[dict]:
    """One row as chat messages, see [`SampleReader`]. Image parts hold the image as the row does.

    Raises `ValueError` without the sample's name.
    """
    if not (_is_empty(row.get("caption")) or row.get("conversations") or row.get("messages")):
        instructions = instructions or DESCRIBE
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
    for image in images:
        _check_image(image, ImageSource)
    return images


def _check_image(image, kinds=bytes | Image.Image):
    if not isinstance(image, kinds):
        raise ValueError(f"an image must be a file's name, bytes or an image, got {image!r}.")


def only_one(row: dict, *names: str):
    """The value of the one column that is not empty, or None. Raises `ValueError` if two columns are not empty."""
    given = [name for name in names if not _is_empty(row.get(name))]
    if len(given) > 1:
        raise ValueError(f"the sample has {' and '.join(given)}, which mean the same; keep one.")
    return row[given[0]] if given else None


def _is_empty(value) -> bool:
    """Tables fill an absent column with null; some datasets use an empty text or list."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def _check_read(given: dict, read: Container[str], what: str):
    """Raises `ValueError` for keys that nothing reads, because their content would be lost."""
    if unread := [key for key, value in given.items() if key not in read and not _is_empty(value)]:
        raise ValueError(
            f"{what} has {', '.join(map(str, unread))}, which nothing reads; remove it, or name a column under "
            "`ignored` of a mixture's source, docs/data.md."
        )


def regions_of(row: dict) -> list[list]:
    """One list of boxes per image of a sample. Raises `ValueError` for another number of lists or an invalid box."""
    regions = regions_per_image(row.get("regions") or [], [len(images_of(row))])
    for box in (box for boxes in regions for box in boxes):
        read_region(box)
    return regions


def _turns(row: dict) -> list[tuple[str, str | list]]:
    """Role and content of each turn. Content is text or a list of a chat message's parts."""
    only_one(row, "conversations", "messages")
    forms = (("conversations", "from", "value"), ("messages", "role", "content"))
    for column, role, content in sorted(forms, key=lambda form: _is_empty(row.get(form[0]))):
        if isinstance(row.get(column), list):
            return [_role_and_content(turn, role, content) for turn in row[column]]
    raise ValueError(
        'a sample needs a list "conversations" or "messages", a question and an answer, or a caption, got '
        f"{list(row)}; name them under `columns` of a mixture's source, docs/data.md."
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
        raise ValueError(f"instructions need a caption or a single text answer, got {answers}.")
    return [("user", random.Random(f"{seed} {answers[0]}").choice(instructions)), ("assistant", answers[0])]


def _check_order(roles: list[str]):
    dialogue = roles[1:] if roles[:1] == ["system"] else roles
    if not dialogue or len(dialogue) % 2 or dialogue != ["user", "assistant"] * (len(dialogue) // 2):
        raise ValueError(
            f"turns must alternate, human first and gpt last (one system turn may open them), got {roles}."
        )


def _pieces(role: str, content: str | list, marked: bool) -> list[str]:
    """The texts before, between and after a turn's images, without the newline that LLaVA writes next to a mark."""
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
    text.encode()  # raises for a lone surrogate, which no tokenizer takes
    if "\0" in text:
        raise ValueError(f"the {role} turn holds NUL characters, so the file is probably not UTF-8; convert it.")
    return parts
