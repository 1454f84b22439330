# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Questions, read from any source of training data (docs/data.md) or a folder of images, and their prompts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm
from transformers.feature_extraction_utils import BatchFeature

from ..inference import prompts
from ..io import named
from ..model.image_processing_omnifusion import is_image, load_image

# The meaning of a row is decided in training, once.
from ..training.conversations import BrokenSampleError, Rows, SampleReader
from ..training.mixture import Source, read_mixture
from ..training.readers import open_rows
from ..training.row_forms import QUESTIONS


NO_ANSWER = "\ufffc"  # the answer of a question without one, in rows that are read as training reads them
LAST_TURNS = (("conversations", "from", "human", "value", "gpt"), ("messages", "role", "user", "content", "assistant"))


@dataclass(frozen=True)
class RowImage:
    """An image inside a row of a shard or a table, which is read again when the image is opened."""

    place: str
    number: int
    read_row: Callable[[], dict] = field(compare=False)

    def __str__(self) -> str:
        return f"{self.place}, image {self.number}"

    def read(self):
        return image_parts(self.read_row()["messages"])[self.number]["image"]


@dataclass(frozen=True)
class Question:
    """One question to a model.

    name: unique within its task.
    messages: a chat that ends with the question; earlier answers are the true ones; image parts hold a file's path, a
        URL or a [`RowImage`].
    truth: the right answer; None if it is not known.
    regions: one list of boxes per image, in pixels.
    """

    name: str
    task: str
    messages: list[dict]
    truth: str | None
    regions: list[list] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(part["text"] for part in self.messages[-1]["content"] if part["type"] == "text")

    @property
    def images(self) -> list:
        return [part["image"] for part in image_parts(self.messages)]


def image_parts(messages: list[dict]) -> list[dict]:
    return [part for message in messages for part in message["content"] if part["type"] == "image"]


def image_sources(question: Question) -> list:
    """The question's images in a form that can be opened."""
    return [image.read() if isinstance(image, RowImage) else image for image in question.images]


def with_images(messages: list[dict], images: list) -> list[dict]:
    """The same chat with its images replaced by `images`, in order; without images if the list is empty."""
    remaining = iter(images)
    return [message | {"content": list(_content(message["content"], remaining))} for message in messages]


def _content(parts: list[dict], images):
    for part in parts:
        if part["type"] == "text":
            yield part
        elif (image := next(images, None)) is not None:
            yield {"type": "image", "image": image}


def opened(processor, question: Question, change: Callable[[Image.Image, int], Image.Image] | None = None) -> list:
    """The question's chat with RGB images instead of paths; each image passes through `change(image, index)`."""
    limit = processor.image_processor.max_image_pixels
    with named(f"{question.task}, {question.name}"):
        images = [load_image(source, limit) for source in image_sources(question)]
    if change:
        images = [change(image, index) for index, image in enumerate(images)]
    return with_images(question.messages, images)


def prompts_of(processor, questions: list[Question], chats: list[list[dict]] | None = None) -> BatchFeature:
    """Model inputs for a batch of questions, with their regions.

    Args:
        chats: the questions' chats with opened images, by default unchanged ones.
    """
    chats = chats or [opened(processor, question) for question in questions]
    return prompts(processor, chats, [question.regions for question in questions])


def read_questions(path: str | Path, image_folder: str | Path | None = None) -> list[Question]:
    """All questions of a source of training data, in order; of a mixture those of every source, each once. A sample
    may name its `"task"`; the default is the source's name. A chat may end with a question, whose truth is None.

    Raises `ValueError` that names the source and the sample, for a broken sample and for an id that occurs twice.
    """
    given = Source(str(path), None if image_folder is None else str(image_folder))
    is_mixture = given.path.endswith((".yaml", ".yml"))
    questions, places = [], {}
    for source in read_mixture(given.path, given) if is_mixture else [given]:
        for place, question in _questions_of_source(source):
            first = places.setdefault((question.task, question.name), place)
            if first != place:
                raise ValueError(f"{place}: {first} of the same task has this id; change it, or the samples' `task`.")
            questions.append(question)
    return questions


def _questions_of_source(source: Source) -> Iterator[tuple[str, Question]]:
    """Each question with the place of its sample."""
    if source.streaming:
        raise ValueError(f"{source.path} is a stream, which never ends; remove `streaming`.")
    rows, reader = open_rows(source.path, source.subset, source.split), source.reader(seed=0)
    for index in tqdm(range(len(rows)), desc="reading questions", leave=False, disable=None):
        row = read_row(rows, reader, index)
        sample = reader.read(row, rows.place(index))
        again = partial(_sample, rows, reader, index)
        for number, part in enumerate(image_parts(sample["messages"])):
            if not isinstance(part["image"], Path) and not str(part["image"]).startswith("http"):
                part["image"] = RowImage(rows.place(index), number, again)
        name = index if row.get("id") is None else row["id"]
        for question in questions_of(sample, str(name), str(row.get("task") or Path(source.path).stem)):
            yield sample["name"], question


def _sample(rows: Rows, reader: SampleReader, index: int) -> dict:
    return reader.read(read_row(rows, reader, index), rows.place(index))


def read_row(rows: Rows, reader: SampleReader, index: int) -> dict:
    """A row of training data by our names of columns. One that ends with a question gets `NO_ANSWER` as the answer."""
    with named(rows.place(index), BrokenSampleError):
        row = reader.renamed(rows[index], optional=QUESTIONS.values())
    for question, answer in QUESTIONS.items():
        if isinstance(row.get(question), str) and row.get(answer) in (None, ""):
            row = row | {answer: NO_ANSWER}
    for column, role, user, content, assistant in LAST_TURNS:
        turns = row.get(column)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get(role) == user:
            row = row | {column: [*turns, {role: assistant, content: NO_ANSWER}]}
    return row


def questions_of(sample: dict, name: str, task: str) -> list[Question]:
    """The questions of one raw sample ([`SampleReader`]); those of a longer dialog are named `NAME, turn 1`, …"""
    messages = sample["messages"]
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    questions = []
    for number, index in enumerate(turns, start=1):
        turn_name = name if len(turns) == 1 else f"{name}, turn {number}"
        truth = messages[index]["content"][0]["text"]
        question = Question(turn_name, task, messages[:index], None if truth == NO_ANSWER else truth)
        questions.append(replace(question, regions=sample["regions"][: len(question.images)]))
    return questions


def questions_about_folder(folder: str | Path, text: str) -> list[Question]:
    """One question about every image of a folder, at any depth, by name. Raises `ValueError` if there is none."""
    folder = Path(folder)
    images = [path for path in sorted(folder.rglob("*")) if is_image(path) and path.is_file()]
    if not images:
        raise ValueError(f"{folder} holds no image; give a folder of image files, such as .png or .jpg.")
    return [
        Question(
            name=str(path.relative_to(folder)),
            task=folder.resolve().name,
            messages=[{"role": "user", "content": [{"type": "image", "image": path}, {"type": "text", "text": text}]}],
            truth=None,
            regions=[[]],
        )
        for path in images
    ]
