# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""What lmms-eval wrote, read: scores from its *_results.json, answer records from its `--log_samples` JSONL.

It writes OUTPUT_PATH/MODEL/DATE_results.json and, beside it, DATE_samples_TASK.jsonl, one pair a run. Runs of one
model are put together; where a task was measured twice the newest counts.
"""

import ast
import json
from dataclasses import dataclass, field
from pathlib import Path

from .answers import Answer, read_answers
from .metrics import exact_match


RESULTS, SAMPLES = "_results.json", "_samples_"


@dataclass(frozen=True)
class Score:
    """A number of one task, as lmms-eval prints it. measured, documents: how many of the task's documents counted."""

    task: str
    metric: str
    value: float
    stderr: float | None = None
    measured: int | None = None
    documents: int | None = None

    @property
    def is_partial(self) -> bool:
        return None not in (self.measured, self.documents) and self.measured < self.documents


@dataclass
class ModelResults:
    """All that was measured of one model: scores by (task, metric), and the files that said so, oldest first."""

    name: str
    scores: dict[tuple[str, str], Score] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def read_result_file(path: str | Path) -> dict:
    """An lmms-eval result file. Raises `ValueError` for another kind of file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); give the *{RESULTS} that lmms-eval wrote.") from None
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise ValueError(f"{path} has no `results`; give the *{RESULTS} that lmms-eval wrote.")
    return content


def read_scores(path: str | Path) -> list[Score]:
    """The scores of an lmms-eval result file: every number that is not an error bar."""
    content = read_result_file(path)
    sizes = content.get("n-samples", {})
    return [
        _score(task, key, metrics, sizes.get(task, {}))
        for task, metrics in content["results"].items()
        for key, value in metrics.items()
        if isinstance(value, (int, float)) and "," in key and "_stderr" not in key
    ]


def _score(task: str, key: str, metrics: dict, size: dict) -> Score:
    metric, _, kind = key.partition(",")  # kind: the filter behind which it was measured, mostly "none"
    stderr = metrics.get(f"{metric}_stderr,{kind}")
    stderr = stderr if isinstance(stderr, (int, float)) else None
    return Score(task, metric, metrics[key], stderr, size.get("effective"), size.get("original"))


def read_models(arguments: list[str]) -> list[ModelResults]:
    """The models in files and folders of results, each by name, in the order of the arguments.

    Args:
        arguments: lmms-eval's output folders or *_results.json; `NAME=PATH` names what lies there.
    """
    models = {}
    for argument in arguments:
        name, path = split_name(argument)
        for file in result_files(path):
            label = name or model_name(read_result_file(file), file)
            models.setdefault(label, ModelResults(label)).files.append(file)
    for model in models.values():
        model.files.sort(key=lambda file: file.name)  # names begin with the date
        model.scores = {(s.task, s.metric): s for file in model.files for s in read_scores(file)}
    return list(models.values())


def split_name(argument: str) -> tuple[str | None, Path]:
    """NAME=PATH, or PATH alone (a path that exists as it stands may hold a `=`)."""
    name, equals, path = argument.partition("=")
    if Path(argument).exists() or not equals:
        return None, Path(argument)
    return name, Path(path)


def result_files(path: Path) -> list[Path]:
    """The result files of a folder at any depth, or the file itself. Raises `ValueError` where there is none.

    Some tasks leave files of such a name under submissions/; those do not begin with a date.
    """
    if path.is_file():
        return [path]
    if files := sorted(path.rglob(f"[0-9]*{RESULTS}")):
        return files
    raise ValueError(
        f"{path} holds no *{RESULTS}; give what --output_path of lmms-eval named. "
        "lmms-eval may exit with 0 when it failed: look at what it printed."
    )


def model_name(content: dict, path: Path) -> str:
    """What was evaluated: the last part of `pretrained`."""
    return Path(str(content.get("model_name") or path.parent.name).rstrip("/")).name


def model_arguments(content: dict) -> dict[str, str]:
    """`--model_args` of a run."""
    text = content.get("config", {}).get("model_args", "") or ""
    return dict(pair.split("=", 1) for pair in text.split(",") if "=" in pair)


def read_sample_answers(results_file: Path) -> list[Answer]:
    """The answers that `--log_samples` wrote beside a result file, task by task."""
    content, answers = read_result_file(results_file), []
    date = results_file.name.removesuffix(RESULTS)
    for file in sorted(results_file.parent.glob(f"{date}{SAMPLES}*.jsonl")):
        task = file.stem.removeprefix(date + SAMPLES)
        lines = file.read_text(encoding="utf-8").split("\n")
        answers += [_answer(json.loads(line), task, content) for line in lines if line.strip()]
    return answers


def _answer(sample: dict, task: str, content: dict) -> Answer:
    said, wanted = sample["filtered_resps"], content.get("configs", {}).get(task, {}).get("doc_to_target")
    said = str(said[0] if isinstance(said, list) and said else said)
    # Tasks that score by themselves often name a column that is not there; lmms-eval then logs the name.
    truths = [] if sample["target"] == wanted else truths_of(sample["target"])
    return Answer(
        name=str(sample["doc_id"]),
        task=task,
        question=sample["input"],
        pictures=pictures_of(sample["doc_id"], task, model_arguments(content).get("log_pictures")),
        truth=truths,
        answer=said,
        score=_score_of(sample, task, content.get("higher_is_better", {}).get(task, {}), said, truths),
    )


def truths_of(target: str) -> list[str]:
    """Every right answer of a logged target, which lmms-eval writes as the text of a list where there are several."""
    if target.startswith("[") and target.endswith("]"):
        try:
            return [str(truth) for truth in ast.literal_eval(target)]
        except (ValueError, SyntaxError):
            pass
    return [target]


def _score_of(sample: dict, task: str, higher_is_better: dict, said: str, truths: list[str]) -> float:
    """The task's first metric that is a number in 0..1, turned so that 1 is right; without one, exact match.

    A metric that is summed up over the whole task is logged as a dict, whose `score`, if any, is its number.
    """
    for metric, better in higher_is_better.items():
        value = sample.get(metric)
        value = value.get("score") if isinstance(value, dict) else value
        if isinstance(value, (int, float)) and 0 <= value <= 1:
            return float(value if better or better is None else 1 - value)
    if not truths:
        raise ValueError(f"{task}, {sample['doc_id']}: its log has neither a score in 0..1 nor the right answer.")
    return exact_match(said, truths)


def picture_path(folder: str | Path, task: str, doc_id, index: int) -> Path:
    """Where the plug-in keeps picture `index` of a document."""
    return Path(folder) / task / f"{doc_id}-{index}.png"


def run_path(folder: str | Path, task: str) -> Path:
    """Where the plug-in keeps what the scores of a task rest on."""
    return Path(folder) / task / "run.json"


def read_records(content: dict) -> dict[str, dict]:
    """By task: what the plug-in noted of the run that wrote these results, where `log_pictures` made it keep notes."""
    folder = model_arguments(content).get("log_pictures")
    paths = {task: run_path(folder, task) for task in content["results"]} if folder else {}
    records = {task: json.loads(path.read_text(encoding="utf-8")) for task, path in paths.items() if path.is_file()}
    return {task: record for task, record in records.items() if record["model"] == content.get("model_name")}


def pictures_of(doc_id, task: str, folder: str | None) -> list[str]:
    """The logged pictures of a document, in their order."""
    if folder is None:
        return []
    found, index = [], 0
    while (path := picture_path(folder, task, doc_id, index)).is_file():
        found.append(str(path))
        index += 1
    return found


def load_answers(arguments: list[str]) -> list[Answer]:
    """Answers of any source: answers.jsonl of `omnifusion report`, or lmms-eval's logged samples.

    Raises `ValueError` where a path holds neither.
    """
    answers = []
    for _, path in map(split_name, arguments):
        if path.suffix == ".jsonl":
            answers += read_answers(path)
            continue
        found = [answer for file in result_files(path) for answer in read_sample_answers(file)]
        if not found:
            raise ValueError(f"{path} holds no logged samples; run lmms-eval with --log_samples.")
        answers += found
    return answers
