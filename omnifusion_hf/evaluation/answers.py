# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Answers of a model as records, one JSON line each: the form that reports read, whoever generated them.

`Evaluator` generates them in batches. A killed run can be resumed, and the batch size changes no answer.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tqdm import tqdm
from transformers.feature_extraction_utils import BatchFeature

from ..inference import context_length, generate_text, max_new_tokens_within_context
from ..io import named, read_json, read_text, write_whole
from ..scores import exact_match
from .questions import Question


Condition = tuple[str | None, float | None]  # perturbation and strength, as in an answer's record
CLEAN: Condition = (None, None)
Present = Callable[[list[Question]], BatchFeature]  # makes model inputs of a batch of questions


@dataclass(frozen=True)
class Answer:
    """One question with the model's answer.

    name: of the sample, unique within its task; images: paths of the question's images (empty: text only).
    truth: every answer that counts as right, empty if unknown; score: 0..1, None if it could not be measured.
    perturbation, strength: how the images were changed (perturbations.py); None for unchanged images.

    Raises `ValueError` for a field of another type and for a score outside 0..1.
    """

    name: str
    task: str
    question: str
    images: list[str]
    truth: list[str]
    answer: str
    score: float | None
    perturbation: str | None = None
    strength: float | None = None

    def __post_init__(self):
        for name, (is_right, wanted) in CHECKS.items():
            if not is_right(value := getattr(self, name)):
                raise ValueError(f"`{name}` of an answer must be {wanted}, got {value!r}.")
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"the score of {self.task}, {self.name} must lie in 0..1, got {self.score}.")

    @property
    def condition(self) -> Condition:
        return self.perturbation, self.strength

    @property
    def key(self) -> tuple[str, str, str | None, float | None]:
        """Identifies an answer among those of one model."""
        return self.task, self.name, *self.condition

    def as_line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


FIELDS = {field.name for field in fields(Answer)}
REQUIRED = FIELDS - {"perturbation", "strength"}


def _is_text(value) -> bool:
    return isinstance(value, str)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not abs(value) > 1e300  # JSON's integers have any size


CHECKS = {
    **dict.fromkeys(("name", "task", "question", "answer"), (_is_text, "text")),
    **dict.fromkeys(
        ("images", "truth"),
        (lambda value: isinstance(value, list) and all(map(_is_text, value)), "a list of texts"),
    ),
    "perturbation": (lambda value: value is None or _is_text(value), "text or null"),
    **dict.fromkeys(("score", "strength"), (lambda value: value is None or _is_number(value), "a number or null")),
}


def read_answer(line: str, place: str) -> Answer:
    """The record of one JSON line. Raises `ValueError` that names `place`."""
    row = read_json(line, f"{place} is not JSON")
    if not isinstance(row, dict) or not REQUIRED <= set(row) <= FIELDS:
        given = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{place} is not an answer: it must have the fields {sorted(FIELDS)}, got {given}.")
    with named(place):
        return Answer(**row)


def read_answers(path: str | Path) -> list[Answer]:
    """The records of a JSONL file. Raises `ValueError` that names the first line that is not a record."""
    lines = read_text(path).split("\n")
    return [read_answer(line, f"{path}, line {n}") for n, line in enumerate(lines, start=1) if line.strip()]


class AnswerLog:
    """A JSONL file that grows during a run and stays usable when the run is killed.

    `answers` holds the records of earlier runs. A last line that was cut off is dropped, and its question is evaluated
    again.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        with self.path.open("rb+") as file:
            whole, _, last = file.read().rpartition(b"\n")
            try:
                read_answer(last.decode(), str(path))
                file.write(b"\n")  # only its end was cut off
            except ValueError:
                file.truncate(len(whole) + bool(whole))
        self.answers = read_answers(self.path)

    def add(self, answers: list[Answer]):
        """Appends the answers of a batch in one write."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(answer.as_line() for answer in answers))
        self.answers += answers


def open_log(folder: str | Path, settings: dict) -> AnswerLog:
    """`answers.jsonl` of a folder, with its settings as in [`keep_settings`]."""
    keep_settings(folder, settings)
    return AnswerLog(Path(folder) / "answers.jsonl")


def keep_settings(folder: str | Path, settings: dict):
    """Writes the settings of all answers in a folder to its `settings.json`.

    Raises `ValueError`, and changes nothing, if the folder holds answers with other settings.
    """
    path = Path(folder) / "settings.json"
    before = read_settings(path) if path.is_file() else {}
    has_answers = any(file.stat().st_size for file in Path(folder).glob("*.jsonl"))
    if has_answers and (changed := [name for name in settings if before.get(name) != settings[name]]):
        name = changed[0]
        raise ValueError(
            f"{folder} holds answers with {name}={before.get(name)!r}, now it is {settings[name]!r}; give another "
            "output folder, or remove this one."
        )
    write_whole(path, json.dumps(settings, indent=1))


def read_settings(path: Path) -> dict:
    """Raises `ValueError` that names a file without settings."""
    settings = read_json(read_text(path), f"{path} is not JSON, give another output folder or remove this one")
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings; give another output folder, or remove this one.")
    return settings


class Evaluator:
    """Generates one model's answers to questions into a log; questions with an answer in the log are skipped."""

    def __init__(self, model, processor, log: AnswerLog, batch_size: int = 16, max_new_tokens: int = 128):
        self.model, self.processor, self.log = model, processor, log
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens

    def run(self, questions: list[Question], condition: Condition, present: Present, bar: tqdm):
        """Generates the missing answers; `present` makes model inputs of a batch of questions under the condition."""
        missing = self.missing(questions, condition)
        bar.set_description(" ".join(str(part) for part in condition if part is not None) or "clean")
        bar.update(len(questions) - len(missing))
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            self._answer(batch, condition, present)
            bar.update(len(batch))

    def _answer(self, batch: list[Question], condition: Condition, present: Present):
        inputs = present(batch)
        room = self._room_for_answers(batch, inputs)
        if room < self.max_new_tokens and len(batch) > 1:  # the longest prompt would cut all answers
            for question in batch:
                self._answer([question], condition, present)
            return
        texts = generate_text(self.model, inputs, self.processor, room)
        self.log.add([answer_record(*pair, condition) for pair in zip(batch, texts)])

    def _room_for_answers(self, batch: list[Question], inputs: BatchFeature) -> int:
        """`max_new_tokens`, or what the context leaves. Raises `ValueError` that names a question without room."""
        longest = batch[int(inputs["attention_mask"].sum(dim=1).argmax())]
        with named(f"{longest.task}, {longest.name}"):
            limit = context_length(self.model.config.text_config)
            return max_new_tokens_within_context(inputs, limit, self.max_new_tokens)

    def answers(self, questions: list[Question], conditions: list[Condition]) -> list[Answer]:
        """The log's answers to these questions under these conditions."""
        wanted = {(question.task, question.name, *condition) for question in questions for condition in conditions}
        return [answer for answer in self.log.answers if answer.key in wanted]

    def missing(self, questions: list[Question], condition: Condition) -> list[Question]:
        """The questions without an answer in the log. Raises `ValueError` for a name that meant another question."""
        done = {(answer.task, answer.name): answer for answer in self.answers(questions, [condition])}
        for question in questions:
            answer = done.get((question.task, question.name))
            if answer and answer != answer_record(question, answer.answer, condition):
                raise ValueError(
                    f"{self.log.path} answers another question, or one about another image, named {question.name!r} "
                    f"of {question.task!r}; give another output folder for another file of questions."
                )
        return [question for question in questions if (question.task, question.name) not in done]


def answer_record(question: Question, text: str, condition: Condition) -> Answer:
    """The answer `text` with its score, normalised exact match."""
    truth = [] if question.truth is None else [question.truth]
    return Answer(
        name=question.name,
        task=question.task,
        question=question.text,
        images=[str(image) for image in question.images],
        truth=truth,
        answer=text,
        score=exact_match(text, truth) if truth else None,
        perturbation=condition[0],
        strength=condition[1],
    )
