# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""What `omnifusion report` tells beyond scores: a model asked by ourselves, robustness, errors, groups of images."""

import argparse
import json
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from ...inference import load
from ...io import write_whole
from ..answers import Answer
from ..asking import AS_IT_IS, Asker, Condition, model_facts, open_log, opened, present_as_it_is
from ..questions import Question, read_questions
from ..results import load_answers
from . import groups
from .attack import with_labels
from .errors import write_errors
from .measure import VIEW_CHANGES, ask_perturbed, conditions_of, summary, swap_images
from .plots import draw_groups, draw_robustness, panels_of


def inspect(options: argparse.Namespace, folder: Path) -> list[Path]:
    """Does what `--model`, `--perturb`, `--errors` and `--groups` ask for; returns the files that tell of it.

    Raises `ValueError` for flags that do not go together.
    """
    _check(options)
    divided = groups.read_groups(options.groups) if options.groups else {}
    answers = load_answers(options.results) if options.errors or options.groups else []
    _check_one_model(answers)
    written = []
    if options.model:
        written, said = ask_model(options, folder)
        answers = said + answers
        _check_one_model(answers)
    if options.errors:
        data_folder = Path(options.data).parent if options.data else None
        write_errors(folder / "errors.html", answers, options.image_folder or data_folder)
        written.append(folder / "errors.html")
    if divided:
        written += write_groups(divided, answers, folder)
    return written


def _check(options: argparse.Namespace):
    if bool(options.model) != bool(options.data):
        raise ValueError("--model and --data go together: which model is asked, and the file of questions.")
    if options.epsilon and not options.perturb:
        raise ValueError("--epsilon is of the attack; add --perturb pgd, or --perturb all.")
    if options.image_folder and not (options.data or options.errors):
        raise ValueError("--image-folder is of the images of --data, and of those that --errors shows; add either.")
    if options.perturb and not options.model:
        raise ValueError("--perturb asks a model; add --model FOLDER --data QUESTIONS.json.")
    if (options.errors or options.groups) and not (options.model or options.results):
        raise ValueError("there are no answers; give RESULTS, or --model FOLDER --data QUESTIONS.json.")


def _check_one_model(answers: list[Answer]):
    twice = [key for key, count in Counter(answer.key for answer in answers).items() if count > 1]
    if twice:
        task, name, *_ = twice[0]
        raise ValueError(f"{task}, {name} was answered twice; give the answers of one model, from one run.")


def ask_model(options: argparse.Namespace, folder: Path) -> tuple[list[Path], list[Answer]]:
    """Asks the questions about the images as they are and, with `--perturb`, changed: files and clean answers."""
    conditions = conditions_of(options.perturb, options.epsilon) if options.perturb else []
    questions = read_questions(options.data, options.image_folder)
    shown = about_images(questions, options.data) if conditions else []
    model, processor = load(options.model)
    if any(name in VIEW_CHANGES for name, _ in conditions):
        with_labels(processor, [opened(processor, shown[0])], shown[:1])  # refuses what the attack will
    settings = {"model": options.model, "max_new_tokens": options.max_new_tokens, "seed": options.seed}
    settings |= model_facts(model, processor)
    log = open_log(folder, settings)
    asker = Asker(model, processor, log, options.batch_size, options.max_new_tokens)
    with tqdm(total=len(questions), unit="answer", disable=None) as bar:
        asker.ask(questions, AS_IT_IS, present_as_it_is(processor), bar)
    answers, written = asker.answers(questions, [AS_IT_IS]), [log.path]
    tell(summary(answers, [AS_IT_IS]))
    if conditions:
        told = settings | {"data": options.data, "questions_without_images": len(questions) - len(shown)}
        written += write_robustness(folder, asker, shown, conditions, told)
    return written, answers


def tell(rows: list[dict]):
    """Prints the accuracy under each condition."""
    for row in rows:
        condition = " ".join(str(row[part]) for part in ("perturbation", "strength") if row[part] is not None)
        accuracy = "accuracy {:.3f} (95% interval {:.3f} to {:.3f})".format(row["accuracy"], *row["interval"])
        print(f"{condition or 'as they are'}: {accuracy}, {row['n']} questions")


def about_images(questions: list[Question], source: str) -> list[Question]:
    """Those that `--perturb` can change. Raises `ValueError` where there is none, or no image to swap with."""
    shown = [question for question in questions if question.images]
    if not shown:
        raise ValueError(f"{source} has no question about an image; --perturb changes images.")
    swap_images(shown)
    return shown


def write_robustness(
    folder: Path, asker: Asker, questions: list[Question], conditions: list[Condition], settings: dict
) -> list[Path]:
    """Asks under all conditions; writes figures and, where something has strengths, the plot; returns their paths."""
    rows = summary(ask_perturbed(asker, questions, conditions, settings["seed"]), conditions)
    tell([row for row in rows if row["perturbation"] is not None])
    paths = [folder / "robustness.json"]
    if panels_of(rows):
        paths.append(folder / "robustness.png")
        draw_robustness(paths[1], rows)
    write_whole(paths[0], json.dumps(settings | {"rows": rows}, indent=1, ensure_ascii=False))
    return paths


def write_groups(divided: dict[str, dict[str, str]], answers: list[Answer], folder: Path) -> list[Path]:
    comparison = groups.compare_groups(divided, answers)
    paths = [folder / name for name in ("groups.json", "groups.md", "groups.png")]
    draw_groups(paths[2], comparison)
    write_whole(paths[0], json.dumps(comparison, indent=1, ensure_ascii=False))
    write_whole(paths[1], groups.as_markdown(comparison))
    return paths
