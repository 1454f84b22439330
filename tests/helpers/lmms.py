"""lmms-eval as users run it, offline: on the bundled questions, formulas and stand-ins of the paper's benchmarks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import standins
from datasets import Dataset, Features, Image, Sequence, Value

from omnifusion_hf.inference import EXAMPLES, TINY


TASK = """\
task: bundled
dataset_path: parquet
dataset_kwargs: {data_files: {test: bundled.parquet}}
test_split: test
output_type: generate_until
doc_to_visual: !function bundled.images_of
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {max_new_tokens: 48, until: ["\\n\\n"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def documents() -> list[dict]:
    """The bundled questions, one of them without an image as well, one with two."""
    examples = json.loads(EXAMPLES.read_text(encoding="utf-8"))
    rows = [{"images": [image(e["image"])], "question": e["question"], "answer": e["truth"]} for e in examples]
    alone = {"images": [], "question": "Which digit is shown?", "answer": "none"}
    return [*rows, alone, rows[0] | {"images": rows[0]["images"] + rows[2]["images"]}]


def image(name: str) -> dict:
    return {"bytes": (EXAMPLES.parent / name).read_bytes(), "path": name}


def write_tasks(folder: Path):
    """The shipped tasks with tex.parquet, the bundled formulas; bundled.yaml with its data; the stand-ins."""
    shutil.copytree(standins.TASKS, folder, dirs_exist_ok=True)
    standins.write(folder)
    rows = documents()
    features = Features({"images": Sequence(Image()), "question": Value("string"), "answer": Value("string")})
    Dataset.from_list(rows, features=features).to_parquet(folder / "bundled.parquet")
    formulas = [{"image": row["images"][0], "formula": row["answer"]} for row in rows if "\\" in row["answer"]]
    features = Features({"image": Image(), "formula": Value("string")})
    Dataset.from_list(formulas, features=features).to_parquet(folder / "tex.parquet")
    (folder / "bundled.yaml").write_text(TASK)
    (folder / "bundled.py").write_text('def images_of(doc):\n    return doc["images"]\n')


def run(folder: Path, output: str, *options: str, launcher: list[str] | None = None) -> subprocess.CompletedProcess:
    """Runs lmms-eval on the bundled model and all tasks in `folder`; returns the finished process."""
    program = launcher or [str(Path(sys.executable).with_name("lmms-eval")), "eval"]
    arguments = f"pretrained={TINY},log_images={output}/images"
    fixed = ["--model", "omnifusion", "--model_args", arguments, "--output_path", output, "--log_samples"]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / f"cache of {output}"), "OMP_NUM_THREADS": "1"}
    tasks = ["--tasks", ",".join(["bundled", "tex", *standins.NAMES]), "--include_path", "."]
    command, settings = [*program, *fixed, *tasks, *options], {"capture_output": True, "text": True, "timeout": 300}
    return subprocess.run(command, cwd=folder, env=os.environ | environment, **settings)
