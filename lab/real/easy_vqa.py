"""The published easy-VQA benchmark as training conversations and test questions.

One conversation per image holds all its questions, shuffled. The last 200 training images are for validation. Stage 1
gets a caption per image, made of its own answers.
"""

import json
import random
from collections import defaultdict
from pathlib import Path

from omnifusion_hf.io import staged_folder

from .packages import REAL, unpacked


FOLDER = REAL / "easy_vqa"
VALIDATION = 200
SHAPES = ("circle", "rectangle", "triangle")
DESCRIBE = ("Give a brief description of the image.", "What is in the picture?", "Describe the image.")


def source() -> Path:
    return unpacked("easy-vqa") / "easy_vqa/data"


def read(split: str) -> dict[int, list[tuple[str, str]]]:
    """Questions and answers of each image."""
    questions = defaultdict(list)
    for question, answer, image in json.loads((source() / split / "questions.json").read_text()):
        questions[image].append((question[0].upper() + question[1:], answer))
    return questions


def sample(name: str, image: str, turns: list[tuple[str, str]], **fields) -> dict:
    """A LLaVA conversation whose first question is about the image."""
    said = [
        {"from": speaker, "value": text}
        for turn in turns
        for speaker, text in zip(("human", "gpt"), turn, strict=True)
    ]
    said[0]["value"] = "<image>\n" + said[0]["value"]
    return {"id": name, "image": image, "conversations": said} | fields


def caption(turns: list[tuple[str, str]], rng: random.Random) -> tuple[str, str] | None:
    """`("Describe the image.", "A blue circle.")`, where the image's questions tell shape and colour."""
    answers = {answer for _, answer in turns} - {"yes", "no"}
    shapes, colours = answers & {*SHAPES}, answers - {*SHAPES}
    if len(shapes) != 1 or len(colours) != 1:
        return None
    return rng.choice(DESCRIBE), f"A {colours.pop()} {shapes.pop()}."


def task_of(answer: str) -> str:
    return "yes/no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "colour"


def write() -> Path:
    """`stage1.json`, `stage2.json`, `validation.json`, `test.json`, and `swapped.json`, the test questions about other
    test images; images are named from `source()`."""
    if FOLDER.exists():
        return FOLDER
    rng, questions = random.Random(0), read("train")
    images = sorted(questions)
    captions, conversations = [], []
    for image in images[:-VALIDATION]:
        turns = rng.sample(questions[image], len(questions[image]))
        name = f"train/images/{image}.png"
        conversations.append(sample(f"train-{image}", name, turns))
        if told := caption(turns, rng):
            captions.append(sample(f"caption-{image}", name, [told]))
    rng.shuffle(captions)
    rng.shuffle(conversations)
    held_out = [("train", image, questions[image]) for image in images[-VALIDATION:]]
    files = {"stage1": captions, "stage2": conversations, "validation": single(held_out)}
    files["test"] = single([("test", image, turns) for image, turns in sorted(read("test").items())])
    files["swapped"] = swapped(files["test"])
    with staged_folder(FOLDER) as folder:
        for name, samples in files.items():
            (folder / f"{name}.json").write_text(json.dumps(samples, indent=0), encoding="utf-8")
    return FOLDER


def swapped(samples: list[dict]) -> list[dict]:
    """The same questions about other images: what is known without seeing."""
    images = [sample["image"] for sample in samples]
    other = images[len(images) // 2 :] + images[: len(images) // 2]  # adjacent questions may be about one image
    return [sample | {"image": image} for sample, image in zip(samples, other, strict=True)]


def single(images: list[tuple[str, int, list[tuple[str, str]]]]) -> list[dict]:
    """Every question in a conversation of its own, with its task."""
    return [
        sample(f"{split}-{image}-{index}", f"{split}/images/{image}.png", [turn], task=task_of(turn[1]))
        for split, image, turns in images
        for index, turn in enumerate(turns)
    ]
