# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""What a model said to one question, as a record: the form that reports read, whoever asked. One JSON line each."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..io import named, read_json, read_text, write_whole


@dataclass(frozen=True)
class Answer:
    """One question that was asked, with what was said.

    name: of the sample, unique within its task; images: paths of what was shown (none: text alone).
    truth: every answer that counts as right, empty where that is unknown; score: what the answer is worth, 0..1.
    perturbation, strength: what was done to the images first (perturbations.py); None for nothing.

    Raises `ValueError` for a field of another type, or a score outside 0..1.
    """

    name: str
    task: str
    question: str
    images: list[str]
    truth: list[str]
    answer: str
    score: float
    perturbation: str | None = None
    strength: float | None = None

    def __post_init__(self):
        for name, (is_right, wanted) in CHECKS.items():
            if not is_right(value := getattr(self, name)):
                raise ValueError(f"`{name}` of an answer must be {wanted}, got {value!r}.")
        if not 0 <= self.score <= 1:
            raise ValueError(f"the score of {self.task}, {self.name} must lie in 0..1, got {self.score}.")

    @property
    def key(self) -> tuple[str, str, str | None, float | None]:
        """By which an answer is found again."""
        return self.task, self.name, self.perturbation, self.strength

    def as_line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


FIELDS = {field.name for field in fields(Answer)}
REQUIRED = FIELDS - {"perturbation", "strength"}


def _is_text(value) -> bool:
    return isinstance(value, str)


def _are_texts(value) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not abs(value) > 1e300  # JSON's integers have any size


CHECKS = {
    **dict.fromkeys(("name", "task", "question", "answer"), (_is_text, "text")),
    **dict.fromkeys(("images", "truth"), (_are_texts, "a list of texts")),
    "score": (_is_number, "a number"),
    "perturbation": (lambda value: value is None or _is_text(value), "text or null"),
    "strength": (lambda value: value is None or _is_number(value), "a number or null"),
}


def answer_of_line(line: str, place: str) -> Answer:
    """The record of one JSON line. Raises `ValueError` that names `place`."""
    row = read_json(line, f"{place} is not JSON")
    if not isinstance(row, dict) or not REQUIRED <= set(row) <= FIELDS:
        given = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{place} is no answer: it must have the fields {sorted(FIELDS)}, got {given}.")
    with named(place):
        return Answer(**row)


def read_answers(path: str | Path) -> list[Answer]:
    """The records of a JSONL file. Raises `ValueError` that names the line that is none."""
    lines = read_text(path).split("\n")
    return [answer_of_line(line, f"{path}, line {n}") for n, line in enumerate(lines, start=1) if line.strip()]


def write_answers(path: str | Path, answers: list[Answer]):
    """Writes a JSONL file that is whole or absent."""
    write_whole(path, "".join(answer.as_line() for answer in answers))


class AnswerLog:
    """A JSONL file that grows while a model is asked, and that a killed run leaves usable.

    What was answered before is in `answers`. A last line that was cut short is dropped and asked again.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        self._drop_half_line()
        self.answers = read_answers(self.path)

    def _drop_half_line(self):
        with self.path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)

    def add(self, answers: list[Answer]):
        """Appends the answers of a batch in one write."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(answer.as_line() for answer in answers))
        self.answers += answers
