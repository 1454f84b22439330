# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Accuracy under changed images: the conditions, the evaluation under each, and the summary."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from zlib import crc32

from tqdm import tqdm

from ..answers import CLEAN, Answer, Condition, Evaluator, Present
from ..metrics import wilson_interval
from ..questions import Question, RowImage, opened, prompts_of, with_images
from .attack import Attack, pgd, random_signs, with_labels
from .perturbations import PERTURBATIONS, PGD, RANDOM, REMOVED, SWAPPED


VIEW_CHANGES = {PGD: pgd, RANDOM: random_signs}


def conditions_of(names: Iterable[str], epsilons: list[float] | None = None) -> list[Condition]:
    """The conditions of these perturbations. Clean images and, as the image-blind baseline, swapped ones are always
    among them, and random changes of the same size beside PGD.

    Raises `ValueError` for an unknown name, and for epsilons out of range or without an attack.
    """
    names = list(PERTURBATIONS) if "all" in names else list(names)
    if unknown := [name for name in names if name not in PERTURBATIONS]:
        raise ValueError(f"--perturb {unknown[0]} is unknown; use all or some of {', '.join(PERTURBATIONS)}.")
    wanted = {SWAPPED, *names, *([RANDOM] if PGD in names else [])}
    if epsilons and not wanted & set(VIEW_CHANGES):
        raise ValueError(f"--epsilon belongs to the attack; add {PGD} to --perturb, or leave --epsilon out.")
    epsilons = sorted({Attack(float(epsilon)).epsilon for epsilon in epsilons or []})
    conditions = [CLEAN]
    for name in (name for name in PERTURBATIONS if name in wanted):
        strengths = epsilons if epsilons and name in VIEW_CHANGES else PERTURBATIONS[name].strengths
        conditions += [(name, float(strength)) for strength in strengths] or [(name, None)]
    return conditions


def evaluate_perturbed(
    evaluator: Evaluator, questions: list[Question], conditions: list[Condition], seed: int = 0
) -> list[Answer]:
    """Answers to questions about images under every condition; those in the evaluator's log are not repeated."""
    changes = {SWAPPED: swap_images, REMOVED: lambda questions: [without_images(each) for each in questions]}
    with tqdm(total=len(questions) * len(conditions), unit="answer", disable=None) as bar:
        for condition in conditions:
            present = presentation(evaluator, condition, seed)
            change = changes.get(condition[0], list)
            evaluator.run(change(questions), condition, present, bar)
    return evaluator.answers(questions, conditions)


def presentation(evaluator: Evaluator, condition: Condition, seed: int) -> Present:
    """The function that makes model inputs of a batch of questions under a condition."""
    name, strength = condition
    if name in VIEW_CHANGES:
        return partial(present_attacked, evaluator, name, Attack(strength, seed=seed))
    if name is None or PERTURBATIONS[name].apply is None:
        return partial(prompts_of, evaluator.processor)
    return partial(present_perturbed, evaluator.processor, condition, seed)


def present_perturbed(processor, condition: Condition, seed: int, questions: list[Question]):
    name, strength = condition

    def change(question: Question, image, index: int):
        own_seed = crc32(f"{seed} {question.task} {question.name} {index}".encode())  # the same at every strength
        return PERTURBATIONS[name].apply(image, strength, own_seed)

    chats = [opened(processor, question, partial(change, question)) for question in questions]
    return prompts_of(processor, questions, chats)


def present_attacked(evaluator: Evaluator, name: str, attack: Attack, questions: list[Question]):
    model, processor = evaluator.model, evaluator.processor
    chats = [opened(processor, question) for question in questions]
    batch = with_labels(processor, chats, questions).to(model.device)
    inputs = prompts_of(processor, questions, chats).to(model.device)
    return inputs | {"pixel_values": VIEW_CHANGES[name](model, batch, attack)}


def without_images(question: Question) -> Question:
    """Raises `ValueError` for a turn without words: nothing would be left of it."""
    if any(all(part["type"] == "image" for part in message["content"]) for message in question.messages):
        raise ValueError(f"{question.task}, {question.name}: a turn is an image alone; leave out --perturb {REMOVED}.")
    return replace(question, messages=with_images(question.messages, []), regions=[])


def swap_images(questions: list[Question]) -> list[Question]:
    """Each question with images of other questions of its task, half the task away; regions move with their image.

    Raises `ValueError` for a task whose questions are all about one image.
    """
    swapped = {}
    for task in dict.fromkeys(question.task for question in questions):
        members = [question for question in questions if question.task == task]
        shown = [pair for question in members for pair in zip(question.images, question.regions, strict=True)]
        others = iter([_another(shown, place) for place in range(len(shown))])
        for question in members:
            taken = list(islice(others, len(question.images)))
            messages = with_images(question.messages, [image for image, _ in taken])
            swapped[task, question.name] = replace(question, messages=messages, regions=[boxes for _, boxes in taken])
    return [swapped[question.task, question.name] for question in questions]


def _another(shown: list[tuple], place: int) -> tuple:
    """The image, with its regions, that replaces the one at `place`."""
    image, half = shown[place][0], place + len(shown) // 2
    for candidate in shown[half % len(shown) :] + shown[: half % len(shown)]:
        if not _are_same(candidate[0], image):
            return candidate
    raise ValueError(f"nothing to swap {image} with, the only image of its task; add questions about another.")


def _are_same(one, other) -> bool:
    """Tables repeat an image in every row about it."""
    in_rows = isinstance(one, RowImage) and isinstance(other, RowImage)
    return one == other or (in_rows and one.read() == other.read())


def summary(answers: list[Answer], conditions: list[Condition]) -> list[dict]:
    """A row per condition: n, accuracy and its 95% interval, over all questions and by task."""
    rows = []
    for condition in conditions:
        members = [answer for answer in answers if answer.condition == condition]
        tasks = dict.fromkeys(answer.task for answer in members)
        by_task = {task: figures([answer for answer in members if answer.task == task]) for task in tasks}
        rows.append(dict(zip(("perturbation", "strength"), condition)) | figures(members) | {"tasks": by_task})
    return rows


def figures(answers: list[Answer]) -> dict:
    right = sum(answer.score for answer in answers)
    interval = wilson_interval(right, len(answers))
    return {"n": len(answers), "accuracy": right / len(answers), "interval": list(interval)}
