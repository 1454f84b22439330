# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Questions with true answers, read from files in the format of training data (docs/data.md), and their prompts."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image
from transformers.feature_extraction_utils import BatchFeature

from ..inference import prompts
from ..model.image_processing_omnifusion import load_image

# The meaning of a LLaVA file is decided in training, once.
from ..training.conversations import ConversationDataset, SampleReader
from ..training.readers import open_rows


@dataclass(frozen=True)
class Question:
    """One question to a model.

    name: unique within its task.
    messages: a chat that ends with the question; earlier answers are the true ones; image parts hold a file's path.
    regions: one list of boxes per image, in pixels.
    """

    name: str
    task: str
    messages: list[dict]
    truth: str
    regions: list[list] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(part["text"] for part in self.messages[-1]["content"] if part["type"] == "text")

    @property
    def images(self) -> list:
        return [part["image"] for message in self.messages for part in message["content"] if part["type"] == "image"]


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
    images = [load_image(path, limit) for path in question.images]
    if change:
        images = [change(image, index) for index, image in enumerate(images)]
    return with_images(question.messages, images)


def prompts_of(processor, questions: list[Question], chats: list[list[dict]] | None = None) -> BatchFeature:
    """Model inputs for a batch of questions, with their regions.

    Args:
        chats: the questions' chats with opened images, by default unchanged ones.
    """
    chats = chats or [opened(processor, question) for question in questions]
    regions = [question.regions for question in questions]
    return prompts(processor, chats, regions if any(map(any, regions)) else None)


def read_questions(path: str | Path, image_folder: str | Path | None = None) -> list[Question]:
    """All questions of a .json or .jsonl file of conversations, in order. A sample may name its `"task"`; the default
    is the file's name.

    Raises `ValueError` that names the file and the sample, for a broken sample and for an id that occurs twice.
    """
    path = Path(path)
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"questions are read from .json or .jsonl files (docs/data.md), got {path}.")
    rows = open_rows(str(path))
    samples = ConversationDataset(rows, SampleReader(image_folder=Path(image_folder or path.parent)))
    questions, places = [], {}
    for index in range(len(rows)):
        sample, row = samples[index], rows[index]
        found = questions_of(sample, str(row.get("id", index)), str(row.get("task", path.stem)))
        for question in found:
            first = places.setdefault((question.task, question.name), sample["name"])
            if first != sample["name"]:
                raise ValueError(f"{sample['name']}: {first} of the same task has this id; ids must be unique.")
        questions += found
    return questions


def questions_of(sample: dict, name: str, task: str) -> list[Question]:
    """The questions of one raw sample ([`SampleReader`]); those of a longer dialog are named `NAME, turn 1`, …"""
    messages = sample["messages"]
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    questions = []
    for number, index in enumerate(turns, start=1):
        turn_name = name if len(turns) == 1 else f"{name}, turn {number}"
        question = Question(turn_name, task, messages[:index], messages[index]["content"][0]["text"])
        questions.append(replace(question, regions=sample["regions"][: len(question.images)]))
    return questions
