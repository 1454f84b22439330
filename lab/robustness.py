"""The study of docs/robustness.md: `omnifusion report` on held-out questions of the miniature world.

python -m lab.robustness          # an hour on two cores; an interrupted run continues when it is started again
"""

import argparse
import csv
import json
from hashlib import sha256
from io import StringIO
from pathlib import Path
from shutil import copyfile

import numpy as np
from PIL import Image
from tqdm import tqdm

from omnifusion_hf.cli import main as omnifusion
from omnifusion_hf.evaluation.robustness.perturbations import PERTURBATIONS, REMOVED, SWAPPED
from omnifusion_hf.inference import TINY
from omnifusion_hf.io import write_whole
from omnifusion_hf.markdown import table

from .canvas import Drawing
from .evaluate import TOPICS, examples


OUT = Path(__file__).parent / "out/robustness"
DOCS = Path(__file__).parents[1] / "docs"
SPLIT, SEEN = "test", 500  # docs/lab.md reports on the first 500 questions of a topic
GROUPINGS = ("number of things", "colour of the largest thing", "ink")


def write_questions(folder: Path, count: int) -> None:
    """`count` questions per topic as questions.json with their images, and the images' groups as groups.csv."""
    samples, lines = [], {}
    for topic in tqdm(TOPICS, desc="questions", disable=None):
        for index, example in enumerate(examples(SPLIT, topic, SEEN + count)[SEEN:]):
            name = sha256(example.drawing.image.tobytes()).hexdigest()[:12] + ".png"  # topics share scenes
            if name not in lines:
                (folder / "images").mkdir(parents=True, exist_ok=True)
                Image.fromarray(example.drawing.image).save(folder / "images" / name)
            lines[name] = groups_of(example.drawing)
            turns = [{"from": "human", "value": example.question}, {"from": "gpt", "value": example.answer}]
            sample = {"id": f"{topic} {index}", "task": topic, "image": f"images/{name}", "conversations": turns}
            samples.append(sample)
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([["image", *GROUPINGS], *([name, *groups] for name, groups in lines.items())])
    write_whole(folder / "groups.csv", text.getvalue())
    write_whole(folder / "questions.json", json.dumps(samples, indent=1))


def groups_of(drawing: Drawing) -> tuple[str, str, str]:
    """Number of things and colour of the largest one in a scene, brightness of glyphs; empty if not applicable."""
    if drawing.kind == "scene":
        things = drawing.facts["things"]
        return str(len(things)), max(things, key=lambda thing: thing.radius).colour, ""
    border = np.concatenate([drawing.image[0], drawing.image[-1]])
    return "", "", "dark on light" if border.mean() > 127 else "light on dark"


def tables(content: dict) -> str:
    """robustness.json as two Markdown tables: against strength, and by topic at middle strengths."""
    rows = {(row["perturbation"], row["strength"]): row for row in content["rows"]}
    names = dict.fromkeys((None, REMOVED, SWAPPED, *PERTURBATIONS))
    by_strength = [
        [name or "none", ", ".join(_cell(row) for key, row in rows.items() if key[0] == name)] for name in names
    ]
    shown = [(name, _middle(name)) for name in names]
    by_topic = [[topic, *(f"{rows[key]['tasks'][topic]['accuracy']:.2f}" for key in shown)] for topic in TOPICS]
    first = table(["perturbation", "accuracy at each strength, 95% interval"], by_strength)
    return f"{first}\n\n{table(['topic', *(_head(*key) for key in shown)], by_topic)}\n"


def _head(name: str | None, strength: float | None) -> str:
    return (name or "none").replace("_", " ") + ("" if strength is None else f" {strength:g}")


def _middle(name: str | None) -> float | None:
    strengths = PERTURBATIONS[name].strengths if name else ()
    return float(strengths[(len(strengths) - 1) // 2]) if strengths else None


def _cell(row: dict) -> str:
    strength = "" if row["strength"] is None else f"{row['strength']:g}: "
    return f"{strength}{row['accuracy']:.3f} ({row['interval'][0]:.2f}–{row['interval'][1]:.2f})"


def study(model: str, folder: Path, perturbed: int, asked: int) -> None:
    """Writes questions and evaluates the model: on few under every perturbation, on more of them, unchanged, for
    errors and groups."""
    for name, count, flags in (
        ("clean", asked, ["--errors", "--groups", str(folder / "clean/groups.csv")]),
        ("perturbed", perturbed, ["--perturb", "all"]),
    ):
        part = folder / name
        if not (part / "questions.json").exists():
            write_questions(part, count)
        given = ["--model", model, "--data", str(part / "questions.json"), "-o", str(part / "report")]
        if omnifusion(["report", *given, "--batch-size", "30", "--max-new-tokens", "64", *flags]):
            raise SystemExit(2)
    content = json.loads((folder / "perturbed/report/robustness.json").read_text(encoding="utf-8"))
    write_whole(folder / "tables.md", tables(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY))
    parser.add_argument("--output", type=Path, default=OUT)
    parser.add_argument("--perturbed", type=int, default=30, help="questions per topic under every perturbation")
    parser.add_argument("--asked", type=int, default=100, help="questions per topic with unchanged images")
    options = parser.parse_args()
    study(options.model, options.output, options.perturbed, options.asked)
    if options.output == OUT:
        copyfile(OUT / "perturbed/report/robustness.png", DOCS / "robustness.png")
        copyfile(OUT / "clean/report/groups.png", DOCS / "groups.png")


if __name__ == "__main__":
    main()
