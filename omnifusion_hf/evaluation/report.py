# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""`omnifusion report`: results of one or several models beside the paper's tables."""

import json
from pathlib import Path

from ..figures import save_figure
from ..io import write_whole
from ..markdown import Markdown, code, plain, table
from .figures import radar
from .paper_tables import BENCHMARKS, TABLES, PaperTable
from .results import ModelResults, Score, lost_images, read_models, read_records, read_result_file


MISSING = "–"
PARTIAL = "*"


def report(results: list[str], output: str | Path, **options) -> list[Path]:
    """Prints the scores, writes a report to the folder `output` and returns the paths of its files.

    Args:
        results: lmms-eval's output folders and files of answers (.jsonl); `NAME=PATH` gives a name.
        options: fields of [`~robustness.Inspection`]: errors, groups, or a model to evaluate on questions.

    Raises `ValueError` if there is nothing to report, and for options that do not go together.
    """
    from .robustness import Inspection, inspect

    inspection = Inspection(results, **options)
    if not results and not inspection.is_wanted:
        raise ValueError(
            "nothing to report: give lmms-eval's folder (its --output_path), files of answers, or --model and --data."
        )
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    models = read_models(results)
    written = inspect(inspection, folder)
    print_scores(models)
    return (write_tables(folder, models) if models else []) + written


def print_scores(models: list[ModelResults]):
    """A line per model, task and metric."""
    for model in models:
        for score in model.scores.values():
            stderr = "" if score.stderr is None else f" (standard error {score.stderr:.4f})"
            size = "" if score.measured is None else f", {score.measured} of {score.documents} documents"
            print(f"{model.name}, {score.task}: {score.metric} {score.value:.4f}{stderr}{size}")


def write_tables(folder: Path, models: list[ModelResults]) -> list[Path]:
    """Writes report.md, report.json and, of scores that the paper has, radar.png."""
    values = {_label(model): paper_values(model) for model in models}
    plot = radar(values) if any(values.values()) else None  # first: matplotlib may be missing
    paths = [folder / name for name in ("report.md", "report.json")]
    write_whole(paths[1], json.dumps(as_data(models), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(paths[0], as_markdown(models))
    if plot is not None:
        paths.append(folder / "radar.png")
        save_figure(plot, paths[-1], dpi=120)
    return paths


def _label(model: ModelResults) -> str:
    partial = any(score.is_partial for score, _ in paper_scores(model).values())
    return f"{model.name}, in part on few documents" if partial else model.name


def paper_scores(model: ModelResults) -> dict[str, tuple[Score, float]]:
    """By column of the paper, a score and its value in the paper's unit; columns without a measurement are absent."""
    found = {}
    for benchmark in BENCHMARKS:
        for task, metric, factor in benchmark.sources:
            if (score := model.scores.get((task, metric))) is not None:
                found.setdefault(benchmark.column, (score, factor * score.value))
    return found


def paper_values(model: ModelResults) -> dict[str, float]:
    return {column: value for column, (_, value) in paper_scores(model).items()}


def as_data(models: list[ModelResults]) -> dict:
    """report.json: the models' numbers by the paper's columns (null: not measured), and all scores as measured."""
    columns = [benchmark.column for benchmark in BENCHMARKS]
    return {
        "models": [
            {
                "name": model.name,
                "paper_columns": {column: paper_values(model).get(column) for column in columns},
                "scores": [vars(score) for score in model.scores.values()],
                "runs": [run_facts(file) for file in model.files],
            }
            for model in models
        ],
        "paper": [{"title": table.title, "rows": {row: table.values(row) for row in table.rows}} for table in TABLES],
    }


def run_facts(file: Path) -> dict:
    """The settings of the run that wrote a result file.

    `records`: by task, the plug-in's run.json; `not_found`: the folder of these records, if it does not exist here.
    """
    content = read_result_file(file)
    config = content["config"]
    kept = ("model_args", "batch_size", "device", "limit", "gen_kwargs", "random_seed", "torch_seed")
    facts = {"file": str(file), "tasks": sorted(content["results"]), "date": content.get("date")}
    facts |= {name: config.get(name) for name in kept}
    return facts | {"records": read_records(content), "not_found": lost_images(content)}


def as_markdown(models: list[ModelResults]) -> str:
    """report.md."""
    plot = ["![Radar plot of the benchmarks](radar.png)"] * any(map(paper_values, models))
    parts = ["# Results beside the paper's", *plot, _legend(models)]
    parts += [_paper_table(table, models) for table in TABLES]
    parts += ["## All scores", *(_scores_table(model) for model in models)]
    parts += ["## Runs", _runs_table(models), "## Columns", _columns_table()]
    return "\n\n".join(parts) + "\n"


def _legend(models: list[ModelResults]) -> str:
    text = (
        f"Bold rows are measured here; the others are the paper's (arXiv 2404.06212). {MISSING}: not measured, or not "
        "in the paper. Percent, higher is better, unless the table says otherwise."
    )
    if any(score.is_partial for model in models for score in model.scores.values()):
        text += f" {PARTIAL}: measured on a part of the documents, not comparable."
    return text


def _paper_table(paper: PaperTable, models: list[ModelResults]) -> str:
    rows = [[name, *map(_number, paper.rows[name])] for name in paper.rows]
    for model in models:
        scores, name = paper_scores(model), Markdown(f"**{plain(model.name)}**")
        rows.append([name, *(_measured(scores.get(column)) for column in paper.columns)])
    text = f"## {plain(paper.title)}\n\n{table(['model', *paper.columns], rows)}"
    return f"{text}\n\n{paper.note}" if paper.note else text


def _columns_table() -> str:
    rows = [
        [benchmark.column, code(task), code(metric), "higher" if benchmark.higher_is_better else "lower"]
        for benchmark in BENCHMARKS
        for task, metric, _ in benchmark.sources
    ]
    return table(["column", "task of lmms-eval", "metric", "better"], rows)


def _scores_table(model: ModelResults) -> str:
    rows = [
        [
            score.task,
            score.metric,
            f"{score.value:.4f}",
            MISSING if score.stderr is None else f"{score.stderr:.4f}",
            MISSING if score.measured is None else f"{score.measured} of {score.documents}",
        ]
        for score in model.scores.values()
    ]
    return f"### {plain(model.name)}\n\n{table(['task', 'metric', 'value', 'standard error', 'documents'], rows)}"


def _runs_table(models: list[ModelResults]) -> str:
    facts = [(model.name, run_facts(file)) for model in models for file in model.files]
    columns = ("date", "model_args", "batch_size", "limit", "file")
    rows = [[name, *(MISSING if fact[key] is None else str(fact[key]) for key in columns)] for name, fact in facts]
    records = [
        [name, task, *_record_cells(record)] for name, fact in facts for task, record in fact["records"].items()
    ]
    parts = [table(["model", "date", "model arguments", "batch size", "limit", "file"], rows)]
    if lost := sorted({fact["not_found"] for _, fact in facts if fact["not_found"]}):
        lost = plain(", ".join(lost))
        parts.append(f"log_images={lost} was not found from here; write the report where lmms-eval ran.")
    elif not records:
        parts.append("No record of versions and prompts: run lmms-eval with log_images=DIR in --model_args.")
    if records:
        parts.append(table(["model", "task", "versions", "dtype", "processor", "prompts"], records))
    return "\n\n".join(parts)


def _record_cells(record: dict) -> list[str]:
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    return [versions, record["dtype"], *(record[f"{what}_sha256"][:12] for what in ("processor", "prompts"))]


def _measured(found: tuple[Score, float] | None) -> str:
    return MISSING if found is None else Markdown(_number(found[1]) + PARTIAL * found[0].is_partial)


def _number(value: float) -> str:
    return f"{value:.2f}"
