# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Wrong answers as one HTML file: by task and kind of answer, each with its images.

Questions and answers are untrusted text: the template escapes them, and the page forbids scripts and requests. File
names are untrusted as well: only images of one folder are shown.
"""

import base64
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from jinja2 import Environment

from ...io import write_whole
from ...model.image_processing_omnifusion import load_image
from ...scores import normalise
from ..answers import Answer
from ..metrics import wilson_interval


TEMPLATE = Path(__file__).with_name("errors.html")
THUMBNAIL = 240  # pixels of the longer side
MOST_SHOWN = 60  # wrong answers of one task and kind; pages stay small enough to open
MAX_PIXELS = 2**27
UNKNOWN = "right answer not logged"  # lmms-eval does not log the right answers of every task

# The first pattern that matches the first right answer counts.
KINDS = {
    "yes or no": re.compile(r"yes|no", re.IGNORECASE),
    "number": re.compile(r"[-+]?[$€£¥₽]?\s?[\d.,:/\s-]*\d\s*([%$€£¥₽]|[ap]\.?m)?", re.IGNORECASE),  # dates, times too
    "option letter": re.compile(r"[A-J]|\([A-Ja-j]\)|[A-Ja-j]\)"),
    "formula": re.compile(r".*(\\[A-Za-z]|[\^_]\{|\w\^[\w(]|[\w)]\s*=\s*[-\w(]).*", re.DOTALL),
    "single word": re.compile(r"\S+"),
    "text": re.compile(r".*", re.DOTALL),
}


def kind_of(answer: Answer) -> str:
    """The kind of the right answer: a key of `KINDS`, or `UNKNOWN`."""
    if not answer.truth:
        return UNKNOWN
    truth = normalise(answer.truth[0]) if normalise(answer.truth[0]) in ("yes", "no") else answer.truth[0].strip()
    return next(kind for kind, pattern in KINDS.items() if pattern.fullmatch(truth.removesuffix(".")))


@dataclass(frozen=True)
class Section:
    """The answers of one task and kind; `wrong` are those with a score below 1, worst first."""

    task: str
    kind: str
    answers: list[Answer]

    @property
    def wrong(self) -> list[Answer]:
        return sorted((answer for answer in self.answers if answer.score < 1), key=lambda answer: answer.score)

    @property
    def shown(self) -> list[Answer]:
        return self.wrong[:MOST_SHOWN]

    @property
    def accuracy(self) -> float:
        return sum(answer.score for answer in self.answers) / len(self.answers)

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(sum(answer.score for answer in self.answers), len(self.answers))


def sections_of(answers: list[Answer]) -> list[Section]:
    """Tasks in the order of the answers, kinds in the order of `KINDS`."""
    tasks = list(dict.fromkeys(answer.task for answer in answers))
    sorted_in = {(task, kind): [] for task in tasks for kind in (*KINDS, UNKNOWN)}
    for answer in answers:
        sorted_in[answer.task, kind_of(answer)].append(answer)
    return [Section(*key, members) for key, members in sorted_in.items() if members]


def write_errors(path: str | Path, answers: list[Answer], image_folder: str | Path | None = None):
    """Writes the page of the answers about unchanged images. Raises `ValueError` if there are none.

    Args:
        image_folder: the folder whose images may be shown; without it no image is shown.
    """
    clean = [answer for answer in answers if answer.perturbation is None]
    if not clean:
        raise ValueError("there are no answers about unchanged images, which --errors shows.")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    sections = sections_of(clean)
    page = template.render(
        sections=sections,
        all=Section("", "", clean),
        perturbed=len(answers) - len(clean),
        images=lambda answer: list(thumbnails(answer, image_folder)),
        hides_images=image_folder is None and any(answer.images for answer in clean),
    )
    write_whole(path, page)


def thumbnails(answer: Answer, folder: str | Path | None) -> Iterator[tuple[str, str | None]]:
    """Name of each image and the image as a data URI, or `None` if it must not or cannot be shown."""
    for image in answer.images:
        yield Path(image).name, thumbnail(image, folder)


def thumbnail(path: str, folder: str | Path | None) -> str | None:
    place = Path(os.path.abspath(path))  # without `..`; links inside the folder are trusted
    if folder is None or not place.is_relative_to(os.path.abspath(folder)):
        return None
    try:
        image = load_image(place, MAX_PIXELS)
    except ValueError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
