"""The paper's numbers are the paper's, and the names of tasks and metrics are those of the installed lmms-eval."""

import re
from pathlib import Path

import pages
import pytest
import standins
from lmms_eval.utils import load_yaml_config

from omnifusion_hf.evaluation.paper_tables import BENCHMARKS, RADAR_ROWS, RELEASE, TABLES


PAPER = Path(__file__).parents[3] / "shared" / "paper.md"
SOURCES = [source for benchmark in BENCHMARKS for source in benchmark.sources]


@pytest.mark.parametrize("task, metric, factor", SOURCES, ids=[f"{task}-{metric}" for task, metric, _ in SOURCES])
def test_tasks_and_metrics_exist_and_are_generated(task, metric, factor):
    config = load_yaml_config(str(standins.task_files()[task]), mode="simple")
    (found,) = [each for each in config["metric_list"] if each["metric"] == metric]
    (benchmark,) = {b for b in BENCHMARKS if (task, metric, factor) in b.sources}
    assert found["higher_is_better"] == benchmark.higher_is_better
    assert config.get("output_type", "generate_until") == "generate_until"  # what the plug-in can do


def test_every_column_of_the_paper_has_a_source_and_rows_of_the_radar_plot_are_rows_of_the_tables():
    known = {benchmark.column for benchmark in BENCHMARKS}
    assert {column for table in TABLES for column in table.columns} <= known
    assert all(len(row) == len(table.columns) for table in TABLES for row in table.rows.values())
    assert "SQA" not in known
    every = [table.values(row) for table in TABLES for row in table.rows]
    assert all(values in every for values in RADAR_ROWS.values()) and len(RADAR_ROWS) == 3


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?<![\w.])\d+\.\d+", text)]


def printed_table(facts: str, heading: str) -> list[list[float]]:
    """The numbers with a decimal point in the four rows below a table's heading."""
    return [numbers(line) for line in facts.partition("\n" + heading)[2].splitlines()[2:6]]


def parts(facts: str, start: str, end: str, separator: str) -> list[str]:
    return facts.partition(start)[2].partition(end)[0].split(separator)


def printed_grid(facts: str) -> list[list[float]]:
    """`POPE 84.47 -> 86.72 -> 87.21; …`: a step of the arrows is a row."""
    columns = [part.split("->") for part in parts(facts, "\nGrid: ", ".\n", ";")]
    return [numbers(" ".join(column[row] for column in columns)) for row in range(3)]


def printed_release(facts: str) -> list[list[float]]:
    """Shares, there."""
    encoders = parts(facts, "\nThe release's README", "\n\n", "two encoders")
    return [[round(100 * number, 2) for number in numbers(part)] for part in encoders]


PRINTED = [  # in the order of TABLES
    lambda facts: printed_table(facts, "| encoder | res | SQA"),
    lambda facts: printed_table(facts, "| adapter | SQA"),
    printed_grid,
    lambda facts: list(map(numbers, parts(facts, "\nOpen Mistral models", "\nThe release", "Vicuna-7B"))),
    printed_release,
    lambda facts: [[each] for each in numbers(parts(facts, "im2latex test formulas:", "\n\n", "\0")[0])],
]


@pytest.mark.skipif(not PAPER.exists(), reason="../shared/paper.md is absent: the paper's numbers are not compared")
@pytest.mark.parametrize("table, read", zip(TABLES, PRINTED, strict=True), ids=[table.title for table in TABLES])
def test_every_number_is_the_papers(table, read):
    facts, rows = PAPER.read_text(encoding="utf-8"), [list(row) for row in table.rows.values()]
    assert read(facts) == rows
    for number in {f"{number:g}" for row in rows for number in row}:  # control: another digit is noticed
        printed = number if table is not RELEASE else f"{float(number) / 100:.4f}".rstrip("0")
        changed = facts.replace(printed, printed[:-1] + str((int(printed[-1]) + 1) % 10))
        assert changed != facts and read(changed) != rows, number


def test_textvqa_with_ocr_puts_the_data_sets_tokens_into_the_question():
    config = load_yaml_config(str(standins.TASKS / "textvqa_val_ocr.yaml"))
    doc = {"question": "what is written?", "ocr_tokens": ["STOP", "9"]}
    ask, settings = config["doc_to_text"], config["lmms_eval_specific_kwargs"]["default"]
    assert "STOP, 9" in ask(doc, settings) and "STOP" not in ask(doc, settings | {"ocr": False})


def test_the_page_of_evaluation_has_a_command_for_every_benchmark_and_says_who_must_log_in():
    page = (pages.ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*evaluate .*\|$", page, re.M)
    row_of = {task: row for row in rows for task in re.findall(r"evaluate ([\w-]+)", row)}
    assert {task for task, *_ in SOURCES} - {"tex"} <= row_of.keys()
    for task, row in row_of.items():
        config = load_yaml_config(str(standins.task_files()[task]), mode="simple")
        assert ("*login*" in row) == bool((config.get("dataset_kwargs") or {}).get("token")), task
