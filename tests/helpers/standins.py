"""The paper's benchmarks with a few made-up rows in place of their data: prompts and scoring are lmms-eval's own.

Left out are those whose answers GPT judges.
"""

import importlib.util
import re
from functools import cache
from pathlib import Path

from datasets import Dataset, Image

from omnifusion_hf.inference import EXAMPLES, TINY


TASKS = TINY.parent / "evaluation" / "tasks"
DIGIT, COLOUR = ({"bytes": (EXAMPLES.parent / f"{name}-1.png").read_bytes()} for name in ("digit", "colour"))
QUESTION = {"image": DIGIT, "question": "Which digit is shown?", "question_id": "1"}
VQA = QUESTION | {"answers": ["2"] * 10}
DOCUMENT = QUESTION | {"questionId": "1", "answers": ["2", "two"]}
SCIENCE = [
    QUESTION | {"hint": "", "choices": ["1", "2"], "answer": 1},
    QUESTION | {"image": None, "question_id": "2", "hint": "Think.", "choices": ["1", "2"], "answer": 1},
]
MMMU = {"image_1": COLOUR, "question": "Look at <image 1>, then <image 2>.", "answer": "A", "options": "['x', 'y']"}
MMMU |= {"question_type": "multiple-choice"}
PAGES = [f"image_{page}" for page in range(1, 21)]
BENCH = QUESTION | {"index": 1, "hint": "nan", "A": "2", "B": "3", "C": "nan", "D": "nan", "answer": "A"}
BENCH |= {"source": "s", "split": "dev", "category": "c", "L2-category": "l", "comment": "nan"}
ANSWER = {"answer": "2", "answer_confidence": "yes"}

ROWS = {
    "scienceqa": SCIENCE,
    "scienceqa_img": SCIENCE[:1],
    "textvqa_val": [VQA],
    "textvqa_val_ocr": [VQA | {"ocr_tokens": ["2"]}],
    "vqav2_val": [
        QUESTION
        | {"answers": [ANSWER | {"answer_id": n} for n in range(10)], "multiple_choice_answer": "2", "image_id": 1}
        | {"question_type": "which", "answer_type": "number"}
    ],
    "vizwiz_vqa_val": [VQA],
    "ok_vqa_val2014": [VQA],
    "pope": [QUESTION | {"answer": answer} for answer in ("yes", "no")],
    "mmbench_en_dev_static": [BENCH],
    "mmmu_val": [
        MMMU | {"image_2": DIGIT, "id": "validation_Art_1"},
        MMMU | {"image_2": None, "id": "validation_Art_2", "question": "<image 1>?", "question_type": "open"},
    ],
    "gqa": [QUESTION | {"answer": "2"}],
    "infovqa_val": [DOCUMENT],
    "chartqa": [QUESTION | {"answer": "2", "type": kind} for kind in ("human_test", "augmented_test")],
    "docvqa_val": [DOCUMENT],
    "multidocvqa_val": [
        {"questionId": "1", "question": "Which digit?", "answers": "['2']"}
        | {page: DIGIT if n < shown else None for n, page in enumerate(PAGES)}
        for shown in (19, 1)
    ],
    "im2latex": [{"image": DIGIT, "formula": "2"}],
}
NAMES = {f"{task}_local": task for task in ROWS}  # lmms-eval's own task would win over one of the same name


@cache
def task_files() -> dict[str, Path]:
    """Every task of lmms-eval and of this package, with the file that says what it is."""
    (installed,) = importlib.util.find_spec("lmms_eval.tasks").submodule_search_locations
    files = [*Path(installed).rglob("*.yaml"), *TASKS.glob("*.yaml")]
    named = {path: re.search(r'^task: *"?([\w-]+)"? *$', path.read_text(encoding="utf-8"), re.M) for path in files}
    return {name[1]: path for path, name in named.items() if name}


def write(folder: Path):
    """A parquet file and a task of another name for each benchmark."""
    for name, task in NAMES.items():
        data = Dataset.from_list(ROWS[task])
        for column in [column for column in data.column_names if re.fullmatch(r"image(_\d+)?", column)]:
            data = data.cast_column(column, Image())
        data.to_parquet(folder / f"{name}.parquet")
        lines = [f"include: {task_files()[task]}", f"task: {name}", "dataset_path: parquet", "dataset_name: null"]
        lines += [f"dataset_kwargs: {{data_files: {{test: {name}.parquet}}}}", "test_split: test"]
        lines += ["process_docs: null"]  # GQA's fetches its images
        (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
