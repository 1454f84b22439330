# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Asking a model many questions in batches, so that a killed run goes on and the batch size changes no answer."""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm
from transformers.feature_extraction_utils import BatchFeature

from ..inference import generate_text, prompts
from ..io import read_json, read_text, write_whole
from ..model.image_processing_omnifusion import load_image
from .answers import Answer, AnswerLog
from .metrics import exact_match
from .provenance import processor_hash
from .questions import Question, with_images


Condition = tuple[str | None, float | None]  # perturbation and strength, as in an answer's record
AS_IT_IS: Condition = (None, None)
Present = Callable[[list[Question]], BatchFeature]


def opened(processor, question: Question, change: Callable[[Image.Image, int], Image.Image] | None = None) -> list:
    """The question's chat with its images as RGB images, each after `change(image, index)` if that is given."""
    limit = processor.image_processor.max_image_pixels
    images = [load_image(path, limit) for path in question.images]
    if change:
        images = [change(image, index) for index, image in enumerate(images)]
    return with_images(question.messages, images)


def prompts_of(processor, questions: list[Question], conversations: list[list[dict]]) -> BatchFeature:
    """Model inputs of opened chats, with the regions that the questions name."""
    regions = [question.regions for question in questions]
    return prompts(processor, conversations, regions if any(map(any, regions)) else None)


def present_as_it_is(processor) -> Present:
    return lambda questions: prompts_of(processor, questions, [opened(processor, each) for each in questions])


class Asker:
    """One model, asked; what it says goes to a log, and what is there already is not asked again."""

    def __init__(self, model, processor, log: AnswerLog, batch_size: int = 16, max_new_tokens: int = 128):
        self.model, self.processor, self.log = model, processor, log
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens

    def ask(self, questions: list[Question], condition: Condition, present: Present, bar: tqdm):
        """Asks what is missing. `present` makes model inputs of a batch of questions under the condition."""
        missing = self._missing(questions, condition)
        bar.set_description(" ".join(str(part) for part in condition if part is not None) or "clean")
        bar.update(len(questions) - len(missing))
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            said = generate_text(self.model, present(batch), self.processor, self.max_new_tokens)
            self.log.add([answer_record(*pair, condition) for pair in zip(batch, said)])
            bar.update(len(batch))

    def answers(self, questions: list[Question], conditions: list[Condition]) -> list[Answer]:
        """What the log holds of these questions under these conditions."""
        wanted = {(question.task, question.name, *condition) for question in questions for condition in conditions}
        return [answer for answer in self.log.answers if answer.key in wanted]

    def _missing(self, questions: list[Question], condition: Condition) -> list[Question]:
        done = {(answer.task, answer.name): answer for answer in self.answers(questions, [condition])}
        for question in questions:
            answer = done.get((question.task, question.name))
            if answer and answer != answer_record(question, answer.answer, condition):
                raise ValueError(
                    f"{self.log.path} answers another question, or one about another image, named {question.name!r} "
                    f"of {question.task!r}; give another output folder for another file of questions."
                )
        return [question for question in questions if (question.task, question.name) not in done]


def answer_record(question: Question, said: str, condition: Condition) -> Answer:
    """What was said, with its score: normalised exact match."""
    return Answer(
        name=question.name,
        task=question.task,
        question=question.text,
        images=[str(image) for image in question.images],
        truth=[question.truth],
        answer=said,
        score=exact_match(said, [question.truth]),
        perturbation=condition[0],
        strength=condition[1],
    )


def model_facts(model, processor) -> dict[str, str]:
    """What answers rest on beside the questions: another model under the same name has other facts."""
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "model_sha256": model_hash(model),
        "processor_sha256": processor_hash(processor),
    }


def model_hash(model) -> str:
    """SHA-256 of the configuration, the settings of `generate` and every weight."""
    configs = [model.config.to_dict(), model.generation_config.to_dict()]
    facts = [config | {"transformers_version": None} for config in configs]
    digest = sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        for plain in _plain(weight):
            digest.update(plain.cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _plain(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that a quantised weight of torchao is made of; any other weight is one."""
    if not hasattr(weight, "__tensor_flatten__"):
        yield weight.detach()
        return
    for name in weight.__tensor_flatten__()[0]:
        yield from _plain(getattr(weight, name))


def open_log(folder: str | Path, settings: dict) -> AnswerLog:
    """`answers.jsonl` of a folder, and beside it `settings.json`, under which all its answers were given.

    Raises `ValueError` where there are answers that were given under other settings.
    """
    log, path = AnswerLog(Path(folder) / "answers.jsonl"), Path(folder) / "settings.json"
    before = read_settings(path) if path.is_file() else {}
    if log.answers and (changed := [name for name in settings if before.get(name) != settings[name]]):
        name = changed[0]
        raise ValueError(
            f"{folder} holds answers with {name}={before.get(name)!r}, now it is {settings[name]!r}; give another "
            "output folder, or remove this one."
        )
    write_whole(path, json.dumps(settings, indent=1))
    return log


def read_settings(path: Path) -> dict:
    """Raises `ValueError` that names a file which is none of settings."""
    settings = read_json(read_text(path), f"{path} is not JSON, give another output folder or remove this one")
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings; give another output folder, or remove this one.")
    return settings
