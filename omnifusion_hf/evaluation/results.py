# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Reads lmms-eval's output: scores from *_results.json, answer records from the JSONL files of `--log_samples`; and
files of answer records, as `omnifusion ask` and `omnifusion report` write them.

Each run of lmms-eval writes OUTPUT_PATH/MODEL/DATE_results.json and DATE_samples_TASK.jsonl beside it. Runs of one
model are merged; of a task that was measured twice the newest run counts.
"""

import ast
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev

from transformers.utils import logging

from ..io import named, read_json, read_text
from ..scores import exact_match
from .answers import CLEAN, Answer, read_answers


RESULTS, SAMPLES = "_results.json", "_samples_"
ANSWERS = ".jsonl"  # suffix of a file of answer records
WANTED = f"give the *{RESULTS} that lmms-eval wrote"
TABLES = ("n-samples", "configs", "higher_is_better")  # fields of a result file with an object per task
LOGGED = ("doc_id", "input", "target", "filtered_resps")  # fields of every logged sample
RECORDED = {"model": str, "versions": dict, "dtype": str, "processor_sha256": str, "prompts_sha256": str}  # run.json

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Score:
    """A number of one task, as lmms-eval prints it; `measured` of the task's `documents` were evaluated."""

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
    """All results of one model: scores by (task, metric), and the files that hold them, oldest first."""

    name: str
    scores: dict[tuple[str, str], Score] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def _parse(text: str, source: str | Path):
    """The JSON value; NaN and infinity, which lmms-eval writes for values it could not measure, become None."""
    return read_json(text, f"{source} is not JSON", parse_constant=lambda _: None)


def read_result_file(path: str | Path) -> dict:
    """An lmms-eval result file, with empty objects for missing tables. Raises `ValueError` for other files."""
    content = _parse(read_text(path), path)
    if not isinstance(content, dict) or not _is_table(content.get("results")):
        raise ValueError(f"{path} has no `results` by task; {WANTED}.")
    content |= {name: {} for name in ("config", *TABLES) if content.get(name) is None}
    wrong = [name for name in TABLES if not _is_table(content[name])]
    if wrong or not isinstance(content["config"], dict):
        raise ValueError(f"{path}: `{(*wrong, 'config')[0]}` has another form than lmms-eval writes; {WANTED}.")
    return content


def _is_table(value) -> bool:
    return isinstance(value, dict) and all(isinstance(row, dict) for row in value.values())


def read_scores(path: str | Path) -> list[Score]:
    """The scores of a file of answers, or of an lmms-eval result file: every number that is not an error bar."""
    if str(path).endswith(ANSWERS):
        return scores_of_answers(Path(path))
    content = read_result_file(path)
    return [
        _score(task, key, metrics, content["n-samples"].get(task, {}))
        for task, metrics in content["results"].items()
        for key, value in metrics.items()
        if _number(value) is not None and "," in key and "_stderr" not in key
    ]


def _number(value) -> float | None:
    return value if isinstance(value, (int, float)) and not abs(value) > 1e300 else None


def _score(task: str, key: str, metrics: dict, size: dict) -> Score:
    metric, _, kind = key.partition(",")  # kind: the filter of the answers, mostly "none"
    others = metrics.get(f"{metric}_stderr,{kind}"), size.get("effective"), size.get("original")
    return Score(task, metric, metrics[key], *map(_number, others))


def read_models(arguments: list[str]) -> list[ModelResults]:
    """The models of files and folders of results, merged by name: of a path the last part, if no two models share it.

    Args:
        arguments: lmms-eval's output folders, *_results.json files or files of answers; `NAME=PATH` gives the model of
            PATH a name.
    """
    files, answers, given = {}, {}, set()
    for argument in arguments:
        name, path = split_name(argument)
        if argument.endswith(ANSWERS):
            answers.setdefault(name or argument, []).append(path)
            continue
        for file in result_files(path):
            files.setdefault(name or model_name(read_result_file(file), file), []).append(file)
        given |= {name}
    models = []
    for name in dict.fromkeys([*files, *answers]):
        results = sorted(files.get(name, []), key=lambda file: file.name)  # names begin with the date
        scores = [score for file in [*results, *answers.get(name, [])] for score in read_scores(file)]
        models.append(ModelResults(name, {(s.task, s.metric): s for s in scores}, results))
    labels = [model.name if model.name in {*answers, *given} else Path(model.name).name for model in models]
    return [replace(model, name=label) if labels.count(label) == 1 else model for model, label in zip(models, labels)]


def scores_of_answers(path: Path) -> list[Score]:
    """The mean score of each task's answers about unchanged images. Raises `ValueError` if none has a score."""
    values = {}
    for answer in scored_answers(path):
        if answer.condition == CLEAN:
            values.setdefault(answer.task, []).append(answer.score)
    if not values:
        raise ValueError(f"{path}: no answer has a score, since no question came with a right answer; add these.")
    return [_mean_score(task, scores) for task, scores in values.items()]


def _mean_score(task: str, values: list[float]) -> Score:
    count = len(values)
    return Score(task, "exact_match", mean(values), stdev(values) / count**0.5 if count > 1 else None, count, count)


def scored_answers(path: Path) -> list[Answer]:
    """The answers of a file, without those to questions whose right answer is not known."""
    answers = read_answers(path)
    scored = [answer for answer in answers if answer.score is not None]
    if len(scored) < len(answers):
        logger.warning(f"{path}: {len(answers) - len(scored)} of {len(answers)} answers have no score; left out.")
    return scored


def split_name(argument: str) -> tuple[str | None, Path]:
    """NAME=PATH, or PATH alone; an existing path may contain a `=`. Raises `ValueError` if either part is empty."""
    name, equals, path = argument.partition("=")
    if Path(argument).exists() or not equals:
        return None, Path(argument)
    if not name.strip() or not path:
        raise ValueError(f"expected NAME=PATH or a path, got {argument}.")
    return name, Path(path)


def result_files(path: Path) -> list[Path]:
    """The result files of a folder at any depth, or the file itself. Raises `ValueError` if there are none.

    Some tasks write *_results.json under submissions/ as well; those names do not begin with a date.
    """
    if path.is_file():
        return [path]
    if files := sorted(path.rglob(f"[0-9]*{RESULTS}")):
        return files
    found = f"{path} holds no *{RESULTS}" if path.exists() else f"there is no {path}"
    raise ValueError(
        f"{found}; give the folder of lmms-eval's --output_path. "
        f"lmms-eval may exit with 0 when it failed: read its log.{why_it_failed(version('filelock'))}"
    )


def why_it_failed(filelock: str) -> str:
    """A known reason why lmms-eval 0.7.3 fails before its first document, or an empty text."""
    if int(filelock.split(".")[0]) < 4:
        return ""
    return f" filelock {filelock} is installed, with which it does not work: pip install 'filelock<4'."


def model_name(content: dict, path: Path) -> str:
    """The model's name: `pretrained`, or else the name of the folder or the file."""
    given = str(content.get("model_name") or "")
    return given if Path(given).name else path.resolve().parent.name or path.stem


def model_arguments(content: dict) -> dict[str, str]:
    """`--model_args` of a run."""
    given = content["config"].get("model_args") or ""
    if isinstance(given, dict):  # lmms-eval was called from Python
        return given
    return dict(pair.split("=", 1) for pair in str(given).split(",") if "=" in pair)


def read_sample_answers(results_file: Path) -> list[Answer]:
    """The answers that `--log_samples` wrote beside a result file, task by task."""
    content, answers = read_result_file(results_file), []
    if folder := lost_images(content):
        logger.warning(f"{results_file}: its log_images={folder} was not found from here; answers have no images.")
    date = results_file.name.removesuffix(RESULTS)
    for file in sorted(results_file.parent.glob(f"{date}{SAMPLES}*.jsonl")):
        answers += _answers_of_log(file, file.stem.removeprefix(date + SAMPLES), content)
    return answers


def _answers_of_log(file: Path, task: str, content: dict) -> list[Answer]:
    answers = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        with named(f"{file}, line {number}"):
            answers += [_answer(_sample(line), task, content)] if line.strip() else []
    return answers


def _sample(line: str) -> dict:
    sample = _parse(line, "this")
    if not isinstance(sample, dict) or not set(LOGGED) <= set(sample):
        raise ValueError(f"this is not a logged sample: it must have the fields {', '.join(LOGGED)}.")
    return sample


def _answer(sample: dict, task: str, content: dict) -> Answer:
    text, column = sample["filtered_resps"], content["configs"].get(task, {}).get("doc_to_target")
    text = str(text[0] if isinstance(text, list) and text else text)
    # Tasks with a scoring function of their own often name a missing column; lmms-eval then logs the column's name.
    truths = [] if sample["target"] == column else truths_of(str(sample["target"]))
    return Answer(
        name=str(sample["doc_id"]),
        task=task,
        question=sample["input"],
        images=images_of(sample["doc_id"], task, log_folder(content)),
        truth=truths,
        answer=text,
        score=_score_of(sample, task, content["higher_is_better"].get(task, {}), text, truths),
    )


def truths_of(target: str) -> list[str]:
    """Every right answer of a logged target; lmms-eval logs several of them as the text of a Python list."""
    if target.startswith("[") and target.endswith("]"):
        try:
            return [str(truth) for truth in ast.literal_eval(target)]
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            pass
    return [target]


def _score_of(sample: dict, task: str, higher_is_better: dict, text: str, truths: list[str]) -> float:
    """The task's first metric that is a number in 0..1, with 1 for right; exact match if there is no such metric.

    A metric that is aggregated over the whole task is logged as a dict, whose optional `score` is the number.
    """
    for metric, better in higher_is_better.items():
        value = sample.get(metric)
        value = value.get("score") if isinstance(value, dict) else value
        if isinstance(value, (int, float)) and 0 <= value <= 1:
            return float(value if better or better is None else 1 - value)
    if not truths:
        raise ValueError(f"{task}, {sample['doc_id']}: its log has neither a score in 0..1 nor the right answer.")
    return exact_match(text, truths)


def image_path(folder: str | Path, task: str, doc_id, index: int) -> Path:
    """The plug-in's file of image `index` of a document."""
    return Path(folder) / task / f"{doc_id}-{index}.png"


def run_path(folder: str | Path, task: str) -> Path:
    """The plug-in's file of the facts on which a task's scores depend."""
    return Path(folder) / task / "run.json"


def log_folder(content: dict) -> str | None:
    """`log_images` of a run as given; a relative path is relative to the folder in which lmms-eval ran."""
    return model_arguments(content).get("log_images")


def lost_images(content: dict) -> str | None:
    """`log_images` of a run, if no such folder exists as seen from here."""
    folder = log_folder(content)
    return folder if folder and not Path(folder).is_dir() else None


def read_records(content: dict) -> dict[str, dict]:
    """By task, the plug-in's record of the run that wrote these results; empty without `log_images`."""
    folder = log_folder(content)
    paths = {task: run_path(folder, task) for task in content["results"]} if folder else {}
    records = {task: _read_record(path) for task, path in paths.items() if path.is_file()}
    return {task: record for task, record in records.items() if record["model"] == content.get("model_name")}


def _read_record(path: Path) -> dict:
    record = _parse(read_text(path), path)
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in RECORDED.items()):
        raise ValueError(f"{path} is not a record of a run: it must have {', '.join(RECORDED)}; remove it.")
    return record


def images_of(doc_id, task: str, folder: str | None) -> list[str]:
    """The logged images of a document, in their order."""
    if folder is None:
        return []
    found, index = [], 0
    while (path := image_path(folder, task, doc_id, index)).is_file():
        found.append(str(path))
        index += 1
    return found


def load_answers(arguments: list[str]) -> list[Answer]:
    """Answers of files answers.jsonl of `omnifusion report` and of lmms-eval's logged samples.

    Raises `ValueError` for a model without logged samples.
    """
    records = [argument for argument in arguments if argument.endswith(ANSWERS)]
    answers = [answer for argument in records for answer in scored_answers(split_name(argument)[1])]
    for model in read_models([argument for argument in arguments if argument not in records]):
        answers += newest_answers(model)
    return answers


def newest_answers(model: ModelResults) -> list[Answer]:
    """The logged samples of each task, from the newest run that has some."""
    newest = {}
    for file in model.files:  # oldest first; samples come task by task
        newest |= {task: list(group) for task, group in groupby(read_sample_answers(file), lambda answer: answer.task)}
    if not newest:
        folders = ", ".join(sorted({str(file.parent) for file in model.files}))
        raise ValueError(f"{folders}: no logged samples of {model.name}; run lmms-eval with --log_samples.")
    return [answer for answers in newest.values() for answer in answers]
