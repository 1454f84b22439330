"""The paper's numbers are the paper's, and the names of tasks and metrics are those of the installed lmms-eval."""

import re
from pathlib import Path

import pages
import pytest
import standins
from lmms_eval.utils import load_yaml_config

from omnifusion_hf.evaluation.paper_tables import (
    BENCHMARKS,
    ENCODERS,
    FORMULAS,
    GRID,
    MIXES,
    OPEN,
    RADAR_ROWS,
    RELEASE,
    TABLES,
)


PAPER = Path(__file__).parents[3] / "shared" / "paper.md"
SOURCES = [source for benchmark in BENCHMARKS for source in benchmark.sources]


@pytest.mark.parametrize("task, metric, factor", SOURCES, ids=[f"{task}-{metric}" for task, metric, _ in SOURCES])
def test_tasks_and_metrics_exist_and_are_generated(task, metric, factor):
    config = load_yaml_config(str(standins.task_files()[task]), mode="simple")
    (found,) = [each for each in config["metric_list"] if each["metric"] == metric]
    (benchmark,) = {b for b in BENCHMARKS if (task, metric, factor) in b.sources}
    assert found["higher_is_better"] == benchmark.higher_is_better
    assert config.get("output_type", "generate_until") == "generate_until"  # what the plug-in can do


def test_every_column_of_the_paper_has_a_source():
    known = {benchmark.column for benchmark in BENCHMARKS}
    assert {column for table in TABLES for column in table.columns} <= known
    assert all(len(row) == len(table.columns) for table in TABLES for row in table.rows.values())
    assert "SQA" not in known


def printed_table(facts: str, heading: str) -> list[list[float]]:
    """The numbers with a decimal point in the four rows below a table's heading."""
    lines = facts.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading)) + 2
    return [numbers(line) for line in lines[start : start + 4]]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?<![\w.])\d+\.\d+", text)]


def between(facts: str, start: str, end: str) -> str:
    return facts.partition(start)[2].partition(end)[0]


def printed_grid(facts: str) -> list[list[float]]:
    """`POPE 84.47 -> 86.72 -> 87.21; …`: a step of the arrows is a row."""
    columns = [part.split("->") for part in between(facts, "\nGrid: ", ".\n").split(";")]
    return [[number for column in columns for number in numbers(column[row])] for row in range(3)]


def printed_open(facts: str) -> list[list[float]]:
    return [numbers(part) for part in between(facts, "\nOpen Mistral models", "\nThe release").split("Vicuna-7B")]


def printed_release(facts: str) -> list[list[float]]:
    """Shares, there."""
    parts = between(facts, "\nThe release's README", "\n\n").split("two encoders")
    return [[round(100 * number, 2) for number in numbers(part)] for part in parts]


def printed_formulas(facts: str) -> list[list[float]]:
    return [[number] for number in numbers(between(facts, "im2latex test formulas:", "\n\n"))]


PRINTED = {
    ENCODERS.title: lambda facts: printed_table(facts, "| encoder | res | SQA"),
    MIXES.title: lambda facts: printed_table(facts, "| adapter | SQA"),
    GRID.title: printed_grid,
    OPEN.title: printed_open,
    RELEASE.title: printed_release,
    FORMULAS.title: printed_formulas,
}


@pytest.mark.skipif(not PAPER.exists(), reason="../shared/paper.md is absent: the paper's numbers are not compared")
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_every_number_is_the_papers(table):
    facts, rows = PAPER.read_text(encoding="utf-8"), [list(row) for row in table.rows.values()]
    assert PRINTED[table.title](facts) == rows
    for number in {f"{number:g}" for row in rows for number in row}:  # control: another digit is noticed
        printed = number if table is not RELEASE else f"{float(number) / 100:.4f}".rstrip("0")
        changed = facts.replace(printed, printed[:-1] + str((int(printed[-1]) + 1) % 10))
        assert changed != facts and PRINTED[table.title](changed) != rows, number


def test_rows_of_the_radar_plot_are_rows_of_the_tables():
    every = [table.values(row) for table in TABLES for row in table.rows]
    assert all(values in every for values in RADAR_ROWS.values()) and len(RADAR_ROWS) == 3


def test_textvqa_with_ocr_puts_the_data_sets_tokens_into_the_question():
    config = load_yaml_config(str(standins.TASKS / "textvqa_val_ocr.yaml"))
    doc = {"question": "what is written?", "ocr_tokens": ["STOP", "9"]}
    ask, settings = config["doc_to_text"], config["lmms_eval_specific_kwargs"]["default"]
    assert "STOP, 9" in ask(doc, settings) and "STOP" not in ask(doc, settings | {"ocr": False})


def test_the_page_of_evaluation_has_a_command_for_every_benchmark_and_says_who_must_log_in():
    page = (pages.ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    rows = {
        task: row
        for row in re.findall(r"^\|.*evaluate .*\|$", page, re.M)
        for task in re.findall(r"evaluate ([\w-]+)", row)
    }
    assert {task for task, *_ in SOURCES} - {"tex"} <= rows.keys()
    for task, row in rows.items():
        config = load_yaml_config(str(standins.task_files()[task]), mode="simple")
        assert ("*login*" in row) == bool((config.get("dataset_kwargs") or {}).get("token")), task
