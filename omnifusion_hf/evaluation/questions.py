# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""A file of questions with true answers, in the format of training data (docs/data.md), one question at a time."""

from dataclasses import dataclass, field, replace
from pathlib import Path

# The one thing taken from training: what a LLaVA file means is decided there, once.
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
    """The same chat with `images` in the places of its own, in order; without any if there are none."""
    remaining = iter(images)
    return [message | {"content": list(_content(message["content"], remaining))} for message in messages]


def _content(parts: list[dict], images):
    for part in parts:
        if part["type"] == "text":
            yield part
        elif (image := next(images, None)) is not None:
            yield {"type": "image", "image": image}


def read_questions(path: str | Path, image_folder: str | Path | None = None) -> list[Question]:
    """Every question of a .json or .jsonl file of dialogs, in order. A sample may name its `"task"`; by default it is
    the file's name.

    Raises `ValueError` that names the file and the sample which is broken, or a name that comes twice.
    """
    path = Path(path)
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"questions are read from .json or .jsonl files (docs/data.md), got {path}.")
    rows = open_rows(str(path))
    samples = ConversationDataset(rows, SampleReader(image_folder=Path(image_folder or path.parent)))
    questions, places = [], {}
    for index in range(len(rows)):
        sample, row = samples[index], rows[index]
        asked = questions_of(sample, str(row.get("id", index)), str(row.get("task", path.stem)))
        for question in asked:
            first = places.setdefault((question.task, question.name), sample["name"])
            if first != sample["name"]:
                raise ValueError(f"{sample['name']}: its task has this id already ({first}); ids name answers.")
        questions += asked
    return questions


def questions_of(sample: dict, name: str, task: str) -> list[Question]:
    """The questions of one raw sample ([`SampleReader`]); those of a dialog are named `NAME, turn 1` and so on."""
    messages = sample["messages"]
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    questions = []
    for number, index in enumerate(turns, start=1):
        turn_name = name if len(turns) == 1 else f"{name}, turn {number}"
        asked = Question(turn_name, task, messages[:index], messages[index]["content"][0]["text"])
        questions.append(replace(asked, regions=sample["regions"][: len(asked.images)]))
    return questions
