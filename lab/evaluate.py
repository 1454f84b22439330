"""Accuracy on new images by topic, beside an image-blind baseline: the same questions with swapped images. The
baseline's score is what the questions alone give away.

    python -m lab.evaluate omnifusion_hf/tiny --split test --count 500
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count as numbers
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from tqdm import tqdm

from omnifusion_hf.evaluation.answers import CLEAN, Answer, AnswerLog, Evaluator
from omnifusion_hf.evaluation.questions import Question
from omnifusion_hf.evaluation.robustness.measure import evaluate_perturbed
from omnifusion_hf.evaluation.robustness.perturbations import SWAPPED
from omnifusion_hf.inference import load
from omnifusion_hf.io import write_whole
from omnifusion_hf.markdown import table
from omnifusion_hf.scores import normalised_edit_distance

from .canvas import Drawing, sample_rng
from .questions import Turn, ask, attribute_turns, caption, conversation, count_turns, place_turns, position_turns
from .world import TEXT_LENGTHS, render


TEXT_TOPICS = {f"text, {n} character{'s' if n > 1 else ''}": n for n in TEXT_LENGTHS}
TOPICS = ("colour", "shape", "count", "position", "place", "caption", "digit", *TEXT_TOPICS, "formula")


@dataclass
class Example:
    """A question about a drawing, as the first turn of a dialog. The drawing's `facts["regions"]` become views."""

    drawing: Drawing
    question: str
    answer: str

    def as_question(self, topic: str, index: int) -> Question:
        image = {"type": "image", "image": Image.fromarray(self.drawing.image)}
        messages = [{"role": "user", "content": [image, {"type": "text", "text": self.question}]}]
        return Question(str(index), topic, messages, self.answer, [self.drawing.facts.get("regions", [])])


def examples(split: str, topic: str, count: int) -> list[Example]:
    """The first `count` examples of a topic; scenes without such a question are skipped."""
    found = []
    for index in numbers():
        if len(found) == count:
            return found
        drawing = _drawing(split, topic, index)
        turns = _turns(split, topic, drawing, index)
        if turns:
            turn = sample_rng(split, f"which {topic}", index).choice(turns)
            found.append(Example(drawing, turn.question, turn.answer))


def _drawing(split: str, topic: str, index: int) -> Drawing:
    if topic in TEXT_TOPICS:
        return render(split, "text", index, TEXT_TOPICS[topic])
    return render(split, topic if topic in ("digit", "formula") else "scene", index)


def _turns(split: str, topic: str, drawing: Drawing, index: int) -> list[Turn]:
    rng = sample_rng(split, f"questions about {topic}", index)
    if drawing.kind != "scene":
        return conversation(rng, drawing)
    things = drawing.facts["things"]
    if topic == "caption":
        return [ask(rng, "caption", caption(things))]
    if topic == "count":
        return balanced(rng, count_turns(rng, things))
    turns_of = {"position": position_turns, "place": place_turns}.get(topic, attribute_turns)
    return [t for t in turns_of(rng, things) if t.topic == topic]


def balanced(rng, turns: list[Turn]) -> list[Turn]:
    """One turn for each different answer, so that the rare larger counts are as frequent as 0 and 1."""
    rng.shuffle(turns)
    return list({t.answer: t for t in turns}.values())


def scores(answers: list[Answer]) -> dict[str, float]:
    """Accuracy by equal text (not normalised, unlike `Answer.score`), and the mean edit distance."""
    pairs = [(answer.answer, answer.truth[0]) for answer in answers]
    return {
        "accuracy": sum(p == t for p, t in pairs) / len(pairs),
        "edit_distance": sum(normalised_edit_distance(p, t) for p, t in pairs) / len(pairs),
    }


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
    conditions = {"": CLEAN} | ({"blind_": (SWAPPED, None)} if blind else {})
    results = {}
    for topic in tqdm(topics, desc=f"evaluate {split}", disable=None):
        questions = [example.as_question(topic, i) for i, example in enumerate(examples_of(split, topic, count))]
        with TemporaryDirectory() as folder:
            log = AnswerLog(Path(folder) / "answers.jsonl")
            evaluator = Evaluator(model, processor, log, batch_size=50, max_new_tokens=64)
            answers = evaluate_perturbed(evaluator, questions, list(conditions.values()))
        results[topic] = {"n": count}
        for prefix, condition in conditions.items():
            found = scores([answer for answer in answers if answer.condition == condition])
            results[topic] |= {prefix + name: value for name, value in found.items()}
    return results


def as_markdown(results: dict) -> str:
    names = ("accuracy", "blind_accuracy", "edit_distance", "blind_edit_distance")
    rows = [
        [topic, row["n"], *(f"{row.get(name, float('nan')):.3f}" for name in names)] for topic, row in results.items()
    ]
    return table(["topic", "n", "accuracy", "image-blind", "edit distance", "image-blind"], rows)


def evaluate_folder(folder: Path, split: str, count: int, json_path: Path | None = None, blind: bool = True) -> None:
    """Prints the table of a saved model and writes it as JSON to `json_path`, if that is given."""
    results = evaluate(*load(str(folder), "cpu"), split, count, blind=blind)
    print(as_markdown(results))
    if json_path:
        write_whole(json_path, json.dumps({"split": split, "topics": results}, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--no-blind", action="store_true")
    parser.add_argument("--json", type=Path, help="write the table there")
    args = parser.parse_args()
    evaluate_folder(args.model, args.split, args.count, args.json, not args.no_blind)
