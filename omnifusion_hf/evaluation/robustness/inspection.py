# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The parts of `omnifusion report` beyond scores: evaluation of a model on questions, robustness, errors, groups."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ...inference import load
from ...io import write_whole
from ..answers import CLEAN, Answer, Condition, Evaluator, open_log
from ..provenance import model_facts
from ..questions import Question, opened, prompts_of, read_questions
from ..results import load_answers
from . import groups
from .attack import with_labels
from .errors import write_errors
from .measure import VIEW_CHANGES, conditions_of, evaluate_perturbed, summary, swap_images, without_images
from .perturbations import REMOVED
from .plots import draw_groups, draw_robustness, panels_of


@dataclass(frozen=True)
class Inspection:
    """What to inspect.

    results: lmms-eval's output folders and files of answers, for `errors` and `groups`.
    model, data, image_folder: a folder or Hub id to evaluate on a file of questions, whose images lie in
        `image_folder` (default: the folder of `data`); `errors` shows only images of that folder.
    perturb: names of perturbations, or `all`; epsilon: bounds of the attack in levels of 0..255.
    errors: writes errors.html; groups: a CSV that divides images into groups.
    batch_size, max_new_tokens, seed: of the evaluation.

    Raises `ValueError` for options that do not go together.
    """

    results: list[str]
    model: str | None = None
    data: str | None = None
    image_folder: str | None = None
    perturb: list[str] | None = None
    epsilon: list[float] | None = None
    errors: bool = False
    groups: str | None = None
    batch_size: int = 16
    max_new_tokens: int = 128
    seed: int = 0

    def __post_init__(self):
        if bool(self.model) != bool(self.data):
            raise ValueError("--model and --data go together: the model to evaluate and the file of questions.")
        if self.epsilon and not self.perturb:
            raise ValueError("--epsilon belongs to the attack; add --perturb pgd, or --perturb all.")
        if self.image_folder and not (self.data or self.errors):
            raise ValueError("--image-folder holds the images of --data and of --errors; add either.")
        if self.perturb and not self.model:
            raise ValueError("--perturb evaluates a model; add --model FOLDER --data QUESTIONS.json.")
        if (self.errors or self.groups) and not (self.model or self.results):
            raise ValueError("there are no answers; give RESULTS, or --model FOLDER --data QUESTIONS.json.")

    @property
    def is_wanted(self) -> bool:
        return bool(self.model or self.errors or self.groups)


def inspect(options: Inspection, folder: Path) -> list[Path]:
    """Writes the files of an inspection to `folder` and returns their paths.

    Raises `ValueError` before a model is loaded for files and settings that cannot be used.
    """
    divided = groups.read_groups(options.groups) if options.groups else {}
    answers = load_answers(options.results) if options.errors or options.groups else []
    _check_one_model(answers)
    written = []
    if options.model:
        written, evaluated = evaluate_model(options, folder)
        answers = evaluated + answers
        _check_one_model(answers)
    if options.errors:
        data_folder = Path(options.data).parent if options.data else None
        write_errors(folder / "errors.html", answers, options.image_folder or data_folder)
        written.append(folder / "errors.html")
    if divided:
        written += write_groups(divided, answers, folder)
    return written


def _check_one_model(answers: list[Answer]):
    twice = [key for key, count in Counter(answer.key for answer in answers).items() if count > 1]
    if twice:
        task, name, *_ = twice[0]
        raise ValueError(f"{task}, {name} was answered twice; give the answers of one model, from one run.")


def evaluate_model(options: Inspection, folder: Path) -> tuple[list[Path], list[Answer]]:
    """Evaluates the model on unchanged images and, with `perturb`, on changed ones: files and clean answers."""
    conditions = conditions_of(options.perturb, options.epsilon) if options.perturb else []
    questions = read_questions(options.data, options.image_folder)
    if unknown := [question for question in questions if question.truth is None]:
        name = f"{unknown[0].task}, {unknown[0].name}"
        raise ValueError(f"{options.data}: {name} has no right answer to compare with; add it, or use omnifusion ask.")
    shown = about_images(questions, options.data, conditions) if conditions else []
    model, processor = load(options.model)
    if any(name in VIEW_CHANGES for name, _ in conditions):
        with_labels(processor, [opened(processor, shown[0])], shown[:1])  # raises for what the attack cannot use
    settings = {"model": options.model, "max_new_tokens": options.max_new_tokens, "seed": options.seed}
    settings |= model_facts(model, processor)
    log = open_log(folder, settings)
    evaluator = Evaluator(model, processor, log, options.batch_size, options.max_new_tokens)
    with tqdm(total=len(questions), unit="answer", disable=None) as bar:
        evaluator.run(questions, CLEAN, lambda batch: prompts_of(processor, batch), bar)
    answers, written = evaluator.answers(questions, [CLEAN]), [log.path]
    print_accuracy(summary(answers, [CLEAN]))
    if conditions:
        facts = settings | {"data": options.data, "questions_without_images": len(questions) - len(shown)}
        written += write_robustness(folder, evaluator, shown, conditions, facts)
    return written, answers


def print_accuracy(rows: list[dict]):
    """A line per condition and, if there are several tasks, one for each of them."""
    for row in rows:
        condition = " ".join(str(row[part]) for part in ("perturbation", "strength") if row[part] is not None)
        print(f"{condition or 'clean'}: {_accuracy(row)}")
        for task, figures in row["tasks"].items() if len(row["tasks"]) > 1 else ():
            print(f"  {task}: {_accuracy(figures)}")


def _accuracy(row: dict) -> str:
    low, high = row["interval"]
    return f"accuracy {row['accuracy']:.3f} (95% interval {low:.3f} to {high:.3f}), {row['n']} questions"


def about_images(questions: list[Question], source: str, conditions: list[Condition]) -> list[Question]:
    """The questions with images. Raises `ValueError` if there are none, or an image cannot be swapped or removed."""
    shown = [question for question in questions if question.images]
    if not shown:
        raise ValueError(f"{source} has no question about an image; --perturb changes images.")
    swap_images(shown)
    if (REMOVED, None) in conditions:
        for question in shown:
            without_images(question)
    return shown


def write_robustness(
    folder: Path, evaluator: Evaluator, questions: list[Question], conditions: list[Condition], facts: dict
) -> list[Path]:
    """Evaluates under all conditions; writes figures and, for perturbations with strengths, the plot."""
    rows = summary(evaluate_perturbed(evaluator, questions, conditions, facts["seed"]), conditions)
    print_accuracy([row for row in rows if row["perturbation"] is not None])
    paths = [folder / "robustness.json"]
    if panels_of(rows):
        paths.append(folder / "robustness.png")
        draw_robustness(paths[1], rows)
    write_whole(paths[0], json.dumps(facts | {"rows": rows}, indent=1, ensure_ascii=False))
    return paths


def write_groups(divided: dict[str, dict[str, str]], answers: list[Answer], folder: Path) -> list[Path]:
    comparison = groups.compare_groups(divided, answers)
    paths = [folder / name for name in ("groups.json", "groups.md", "groups.png")]
    draw_groups(paths[2], comparison)
    write_whole(paths[0], json.dumps(comparison, indent=1, ensure_ascii=False))
    write_whole(paths[1], groups.as_markdown(comparison))
    return paths
