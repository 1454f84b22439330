# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""`omnifusion report`: what was measured of one or several models, beside the paper's tables."""

import argparse
import json
from pathlib import Path

from ..files import write_whole
from .paper_tables import BENCHMARKS, TABLES, PaperTable
from .results import ModelResults, Score, read_models, read_result_file


MISSING = "–"
PARTIAL = "*"


def report(options: argparse.Namespace) -> Path:
    """Writes report.md, report.json and radar.png into `options.output`; returns the first."""
    from .radar import draw_radar

    if not options.results:
        raise ValueError("no RESULTS; give the folder that lmms-eval's --output_path named.")
    folder, models = Path(options.output), read_models(options.results)
    folder.mkdir(parents=True, exist_ok=True)
    draw_radar(folder / "radar.png", {model.name: paper_values(model) for model in models})
    write_whole(folder / "report.json", json.dumps(as_data(models), indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "report.md", as_markdown(models))
    return folder / "report.md"


def paper_scores(model: ModelResults) -> dict[str, tuple[Score, float]]:
    """By the paper's column: the score that stands there and its value in the paper's unit. Unmeasured: left out."""
    found = {}
    for benchmark in BENCHMARKS:
        for task, metric, factor in benchmark.sources:
            if (score := model.scores.get((task, metric))) is not None:
                found.setdefault(benchmark.column, (score, factor * score.value))
    return found


def paper_values(model: ModelResults) -> dict[str, float]:
    return {column: value for column, (_, value) in paper_scores(model).items()}


def as_data(models: list[ModelResults]) -> dict:
    """report.json: the models' numbers, by the paper's columns (null: not measured) and as they were measured."""
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
    """How a result file came about."""
    content = read_result_file(file)
    config = content.get("config", {})
    kept = ("model_args", "batch_size", "device", "limit", "gen_kwargs", "random_seed", "torch_seed")
    return {
        "file": str(file),
        "tasks": sorted(content["results"]),
        "date": content.get("date"),
        "lmms_eval": content.get("lmms_eval_version"),
        **{name: config.get(name) for name in kept},
    }


def as_markdown(models: list[ModelResults]) -> str:
    """report.md."""
    parts = ["# Results beside the paper's", "![Radar plot of the benchmarks](radar.png)", _legend(models)]
    parts += [_paper_table(table, models) for table in TABLES]
    parts += ["## All scores", *(_scores_table(model) for model in models)]
    parts += ["## Runs", _runs_table(models), "## What the columns are", _columns_table()]
    return "\n\n".join(parts) + "\n"


def _legend(models: list[ModelResults]) -> str:
    text = (
        f"Bold rows are measured here; the others are the paper's (arXiv 2404.06212). {MISSING}: not measured, or not "
        "in the paper. Percent, higher is better, where the table does not say otherwise."
    )
    if any(score.is_partial for model in models for score in model.scores.values()):
        text += f" {PARTIAL}: measured on a part of the documents, not comparable."
    return text


def _paper_table(table: PaperTable, models: list[ModelResults]) -> str:
    rows = [[name, *map(_number, table.rows[name])] for name in table.rows]
    for model in models:
        scores = paper_scores(model)
        rows.append([f"**{model.name}**", *(_measured(scores.get(column)) for column in table.columns)])
    return f"## {table.title}\n\n{_table(['model', *table.columns], rows)}"


def _columns_table() -> str:
    rows = [
        [benchmark.column, f"`{task}`", f"`{metric}`", "higher" if benchmark.higher_is_better else "lower"]
        for benchmark in BENCHMARKS
        for task, metric, _ in benchmark.sources
    ]
    return _table(["column", "task of lmms-eval", "metric", "better"], rows)


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
    return f"### {model.name}\n\n{_table(['task', 'metric', 'value', 'standard error', 'documents'], rows)}"


def _runs_table(models: list[ModelResults]) -> str:
    facts = [(model.name, run_facts(file)) for model in models for file in model.files]
    rows = [
        [name, *(str(fact[key]) for key in ("date", "lmms_eval", "model_args", "batch_size", "file"))]
        for name, fact in facts
    ]
    return _table(["model", "date", "lmms-eval", "model arguments", "batch size", "file"], rows)


def _measured(found: tuple[Score, float] | None) -> str:
    return MISSING if found is None else _number(found[1]) + PARTIAL * found[0].is_partial


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
