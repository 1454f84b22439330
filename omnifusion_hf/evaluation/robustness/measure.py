# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Accuracy against what happens to images: the perturbation set asked, summed up and drawn."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from zlib import crc32

from tqdm import tqdm

from ..answers import Answer
from ..asking import AS_IT_IS, Asker, Condition, Present, opened, present_as_it_is, prompts_of
from ..metrics import wilson_interval
from ..questions import Question, with_images
from .attack import Attack, pgd, random_signs, with_labels
from .perturbations import PERTURBATIONS, PGD, RANDOM, REMOVED, SWAPPED


VIEW_CHANGES = {PGD: pgd, RANDOM: random_signs}


def conditions_of(names: Iterable[str], epsilons: list[float] | None = None) -> list[Condition]:
    """What is asked for these perturbations: beside them always the clean images and, as the image-blind
    baseline, swapped ones; beside PGD random changes of its size.

    Raises `ValueError` for an unknown name, for epsilons that are out of range or that nothing asked for has.
    """
    names = list(PERTURBATIONS) if "all" in names else list(names)
    if unknown := [name for name in names if name not in PERTURBATIONS]:
        raise ValueError(f"--perturb {unknown[0]} is unknown; use all or some of {', '.join(PERTURBATIONS)}.")
    wanted = {SWAPPED, *names, *([RANDOM] if PGD in names else [])}
    if epsilons and not wanted & set(VIEW_CHANGES):
        raise ValueError(f"--epsilon is of the attack; add {PGD} to --perturb, or leave --epsilon out.")
    epsilons = sorted({Attack(float(epsilon)).epsilon for epsilon in epsilons or []})
    conditions = [AS_IT_IS]
    for name in (name for name in PERTURBATIONS if name in wanted):
        strengths = epsilons if epsilons and name in VIEW_CHANGES else PERTURBATIONS[name].strengths
        conditions += [(name, float(strength)) for strength in strengths] or [(name, None)]
    return conditions


def ask_perturbed(asker: Asker, questions: list[Question], conditions: list[Condition], seed: int = 0) -> list[Answer]:
    """Asks every question that has images under every condition; resumes what the asker's log holds."""
    asked = {SWAPPED: swap_images(questions), REMOVED: [without_images(each) for each in questions]}
    with tqdm(total=len(questions) * len(conditions), unit="answer", disable=None) as bar:
        for condition in conditions:
            present = presentation(asker, condition, seed)
            asker.ask(asked.get(condition[0], questions), condition, present, bar)
    return asker.answers(questions, conditions)


def presentation(asker: Asker, condition: Condition, seed: int) -> Present:
    """How a batch of questions becomes model inputs under a condition."""
    name, strength = condition
    if name in VIEW_CHANGES:
        return partial(present_attacked, asker, name, Attack(strength, seed=seed))
    if name is None or PERTURBATIONS[name].apply is None:
        return present_as_it_is(asker.processor)
    return partial(present_perturbed, asker.processor, condition, seed)


def present_perturbed(processor, condition: Condition, seed: int, questions: list[Question]):
    name, strength = condition

    def change(question: Question, image, index: int):
        own_seed = crc32(f"{seed} {question.task} {question.name} {index}".encode())  # the same at every strength
        return PERTURBATIONS[name].apply(image, strength, own_seed)

    conversations = [opened(processor, question, partial(change, question)) for question in questions]
    return prompts_of(processor, questions, conversations)


def present_attacked(asker: Asker, name: str, attack: Attack, questions: list[Question]):
    conversations = [opened(asker.processor, question) for question in questions]
    batch = with_labels(asker.processor, conversations, questions).to(asker.model.device)
    inputs = prompts_of(asker.processor, questions, conversations).to(asker.model.device)
    return inputs | {"pixel_values": VIEW_CHANGES[name](asker.model, batch, attack)}


def without_images(question: Question) -> Question:
    return replace(question, messages=with_images(question.messages, []), regions=[])


def swap_images(questions: list[Question]) -> list[Question]:
    """Each question about images of others of its task, half the task away; the regions move with their image.

    Raises `ValueError` for a task all of whose questions are about one image.
    """
    swapped = {}
    for task in dict.fromkeys(question.task for question in questions):
        asked = [question for question in questions if question.task == task]
        shown = [pair for question in asked for pair in zip(question.images, question.regions, strict=True)]
        others = iter([_another(shown, place) for place in range(len(shown))])
        for question in asked:
            taken = list(islice(others, len(question.images)))
            messages = with_images(question.messages, [image for image, _ in taken])
            swapped[task, question.name] = replace(question, messages=messages, regions=[boxes for _, boxes in taken])
    return [swapped[question.task, question.name] for question in questions]


def _another(shown: list[tuple], place: int) -> tuple:
    """The image, with its regions, that the one at `place` is swapped with."""
    image, half = shown[place][0], place + len(shown) // 2
    for candidate in shown[half % len(shown) :] + shown[: half % len(shown)]:
        if candidate[0] != image:
            return candidate
    raise ValueError(f"nothing to swap {image} with, the only image of its task; add questions about another.")


def summary(answers: list[Answer], conditions: list[Condition]) -> list[dict]:
    """A row for each condition: n, accuracy, its 95% interval, and the same for each task."""
    rows = []
    for condition in conditions:
        asked = [answer for answer in answers if (answer.perturbation, answer.strength) == condition]
        tasks = dict.fromkeys(answer.task for answer in asked)
        by_task = {task: figures([answer for answer in asked if answer.task == task]) for task in tasks}
        rows.append(dict(zip(("perturbation", "strength"), condition)) | figures(asked) | {"tasks": by_task})
    return rows


def figures(answers: list[Answer]) -> dict:
    right = sum(answer.score for answer in answers)
    interval = wilson_interval(right, len(answers))
    return {"n": len(answers), "accuracy": right / len(answers), "interval": list(interval)}
