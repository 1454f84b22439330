"""Right answers on fresh pictures, a topic at a time, beside a picture-blind baseline: the same questions with the
pictures exchanged among them. What the baseline scores is what the question alone gives away.

    python -m lab.evaluate omnifusion_hf/tiny --split test --count 500
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count as numbers
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from omnifusion_hf.evaluation.metrics import normalised_edit_distance
from omnifusion_hf.inference import generate_text, prompts
from omnifusion_hf.io import write_whole

from .canvas import Picture, sample_rng
from .questions import Turn, ask, attribute_turns, caption, conversation, count_turns, place_turns, position_turns
from .world import TEXT_LENGTHS, render


TEXT_TOPICS = {f"text, {n} character{'s' if n > 1 else ''}": n for n in TEXT_LENGTHS}
TOPICS = ("colour", "shape", "count", "position", "place", "caption", "digit", *TEXT_TOPICS, "formula")


@dataclass
class Example:
    """One question about one picture, asked first thing in a dialog."""

    picture: Picture
    question: str
    answer: str


def examples(split: str, topic: str, count: int) -> list[Example]:
    """The first `count` examples of a topic; scenes that offer no such question are passed over."""
    found = []
    for index in numbers():
        if len(found) == count:
            return found
        picture = _picture(split, topic, index)
        turns = _turns(split, topic, picture, index)
        if turns:
            turn = sample_rng(split, f"which {topic}", index).choice(turns)
            found.append(Example(picture, turn.question, turn.answer))


def _picture(split: str, topic: str, index: int) -> Picture:
    if topic in TEXT_TOPICS:
        return render(split, "text", index, TEXT_TOPICS[topic])
    return render(split, topic if topic in ("digit", "formula") else "scene", index)


def _turns(split: str, topic: str, picture: Picture, index: int) -> list[Turn]:
    rng = sample_rng(split, f"questions about {topic}", index)
    if picture.kind != "scene":
        return conversation(rng, picture)
    things = picture.facts["things"]
    if topic == "caption":
        return [ask(rng, "caption", caption(things))]
    if topic == "count":
        return balanced(rng, count_turns(rng, things))
    turns_of = {"position": position_turns, "place": place_turns}.get(topic, attribute_turns)
    return [t for t in turns_of(rng, things) if t.topic == topic]


def balanced(rng, turns: list[Turn]) -> list[Turn]:
    """One turn for each different answer, so that the rare larger counts are asked as often as 0 and 1."""
    rng.shuffle(turns)
    return list({t.answer: t for t in turns}.values())


def scores(predictions: list[str], truths: list[str]) -> dict[str, float]:
    pairs = list(zip(predictions, truths, strict=True))
    return {
        "accuracy": sum(p == t for p, t in pairs) / len(pairs),
        "edit_distance": sum(normalised_edit_distance(p, t) for p, t in pairs) / len(pairs),
    }


def answers(model, processor, pictures: list[Picture], questions: list[str], batch_size: int = 50) -> list[str]:
    """Greedy answers of the saved model through its own processor and generate(); `facts["regions"]` become views."""
    said = []
    for start in range(0, len(questions), batch_size):
        asked = list(zip(pictures, questions))[start : start + batch_size]
        messages = [[{"role": "user", "content": _content(picture, question)}] for picture, question in asked]
        regions = [[picture.facts.get("regions", [])] for picture, _ in asked]
        said += generate_text(model, prompts(processor, messages, regions), processor, max_new_tokens=64)
    return said


def _content(picture: Picture, question: str) -> list[dict]:
    return [{"type": "image", "image": Image.fromarray(picture.image)}, {"type": "text", "text": question}]


def evaluate(
    model,
    processor,
    split: str,
    count: int,
    topics: tuple[str, ...] = TOPICS,
    blind: bool = True,
    examples_of: Callable[[str, str, int], list[Example]] = examples,
) -> dict:
    """topic -> {"n", "accuracy", "edit_distance", "blind_accuracy", "blind_edit_distance"}."""
    table = {}
    for topic in tqdm(topics, desc=f"evaluate {split}", disable=None):
        asked = examples_of(split, topic, count)
        pictures, questions = [e.picture for e in asked], [e.question for e in asked]
        truths = [e.answer for e in asked]
        table[topic] = {"n": count, **scores(answers(model, processor, pictures, questions), truths)}
        if blind:
            exchanged = pictures[count // 2 :] + pictures[: count // 2]
            guessed = scores(answers(model, processor, exchanged, questions), truths)
            table[topic] |= {f"blind_{name}": value for name, value in guessed.items()}
    return table


def as_markdown(table: dict) -> str:
    lines = ["| topic | n | accuracy | picture-blind | edit distance | picture-blind |", "|---|---|---|---|---|---|"]
    for topic, row in table.items():
        figures = [
            row.get(k, float("nan")) for k in ("accuracy", "blind_accuracy", "edit_distance", "blind_edit_distance")
        ]
        lines.append(f"| {topic} | {row['n']} | " + " | ".join(f"{f:.3f}" for f in figures) + " |")
    return "\n".join(lines)


def evaluate_folder(folder: Path, split: str, count: int, json_path: Path | None = None, blind: bool = True) -> None:
    """Prints the table of a saved model and, where a path is given, writes it as JSON."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import omnifusion_hf  # noqa: F401  registers the classes

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    table = evaluate(model, AutoProcessor.from_pretrained(folder), split, count, blind=blind)
    print(as_markdown(table))
    if json_path:
        write_whole(json_path, json.dumps({"split": split, "topics": table}, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--no-blind", action="store_true")
    parser.add_argument("--json", type=Path, help="write the table there")
    args = parser.parse_args()
    evaluate_folder(args.model, args.split, args.count, args.json, not args.no_blind)
