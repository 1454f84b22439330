"""`omnifusion report` puts measured scores beside the paper's numbers and invents none."""

import json
import re
from dataclasses import replace

import pytest
from lmms_results import POPE, write_record, write_results
from PIL import Image

from omnifusion_hf.cli import main
from omnifusion_hf.evaluation import report as module
from omnifusion_hf.evaluation.answers import Answer
from omnifusion_hf.evaluation.paper_tables import TABLES


SCORES = {
    "pope": POPE,
    "mmbench_en_dev": {"gpt_eval_score,none": 61.5},
    "tex": {"edit_distance,none": 0.25},
    "of_my_own": {"exact_match,none": 0.123456},
    "gqa": {"exact_match,none": float("nan")},
}
FEW = {"n-samples": {"pope": {"original": 9000, "effective": 10}}}


def report_of(folder, *results) -> list[str]:
    """The report of these results, in `folder`, and its data, as texts."""
    assert main(["report", *map(str, results), "-o", str(folder / "report")]) == 0
    return [(folder / "report" / name).read_text() for name in ("report.md", "report.json")]


@pytest.fixture
def report(tmp_path):
    """A report of two models, one measured on few documents; its text and data."""
    write_results(tmp_path / "full", results=SCORES)
    write_results(tmp_path / "part", **FEW)
    text, data = report_of(tmp_path, tmp_path / "full", f"part={tmp_path / 'part'}")
    return text, json.loads(data, parse_constant=pytest.fail)  # NaN is not standard JSON


def row(text: str, name: str, table: int = 0) -> list[str]:
    found = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.M)
    return found[table].split(" | ")


def test_measured_rows_follow_the_papers_in_its_unit(report):
    text, _ = report
    assert row(text, "CLIP ViT-L/14")[5] == "84.50"
    assert row(text, "**mine**") == ["–"] * 5 + ["80.00", "61.50", "–", "–"]
    for number, table in enumerate(TABLES):
        assert f"## {table.title}\n" in text and len(row(text, "**mine**", number)) == len(table.columns)
    assert row(text, "**mine**", len(TABLES) - 1) == ["0.25"]


def test_a_part_of_the_documents_is_marked_and_tasks_that_the_paper_lacks_are_listed(report):
    text, data = report
    assert row(text, "**part**")[5] == "80.00*" and "measured on a part" in text
    assert "| pope | pope_accuracy | 0.8000 | 0.0200 | 10 of 9000 |" in text
    assert "| of_my_own | exact_match | 0.1235 | – | – |" in text
    assert {"task": "of_my_own", "value": 0.123456}.items() <= data["models"][0]["scores"][-1].items()


def test_report_json_holds_the_papers_rows_and_null_for_what_was_not_measured_or_is_no_number(report):
    columns, paper = report[1]["models"][0]["paper_columns"], report[1]["paper"]
    assert columns["VizWiz"] is columns["GQA"] is None and columns["POPE"] == pytest.approx(80)
    assert sum(value is not None for value in columns.values()) == 3
    assert paper[0]["rows"]["InternViT-6B"]["MMMU"] == 35.4 and len(paper) == len(TABLES)


def test_a_report_has_three_files_and_leaves_no_partial_ones(report, tmp_path):
    names = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert names == ["radar.png", "report.json", "report.md"]
    image = Image.open(tmp_path / "report/radar.png").convert("RGB")
    assert image.size == (1080, 840) and len(image.getcolors(maxcolors=2**20)) > 100  # not an empty canvas


def test_without_a_benchmark_of_the_paper_there_is_no_plot_and_no_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "radar", lambda values: pytest.fail("a plot"))
    own = write_results(tmp_path / "own", results={"of_my_own": {"exact_match,none": 0.5}})
    assert "radar.png" not in report_of(tmp_path, own)[0] and not (tmp_path / "report/radar.png").exists()


def test_the_plot_shows_each_model_in_the_papers_unit(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "radar", drawn.append)
    monkeypatch.setattr(module, "save_figure", lambda *_, **__: None)
    report_of(tmp_path, write_results(tmp_path / "part", **FEW))
    assert drawn == [{"mine, in part on few documents": {"POPE": pytest.approx(80)}}]


RECORD = "| mine | pope | torch 9.9 | float32 | abababababab | cdcdcdcdcdcd |"


def test_a_run_shows_its_record_and_a_folder_of_records_that_is_not_found_from_here_is_named(tmp_path, monkeypatch):
    results = write_results(tmp_path / "a", config={"model_args": "pretrained=x,log_images=kept"})
    (tmp_path / "kept").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "No record of versions" in report_of(tmp_path, results)[0]
    write_record(tmp_path / "kept")
    for folder, found in ((tmp_path, True), (tmp_path / "a", False)):
        monkeypatch.chdir(folder)
        text, _ = report_of(tmp_path, results)
        assert (RECORD in text) is found and ("log_images=kept was not found from here" in text) is not found
        assert "No record of versions" not in text and "run lmms-eval with log_images" not in text


def test_hostile_names_stay_names_in_the_report(tmp_path):
    hostile = "<script>alert(1)</script> | [a](b)\n# A heading `"
    results = {hostile: {f"{hostile},none": 0.5}, "pope": POPE}
    config = {"model_args": f"pretrained={hostile},log_images={hostile}", "batch_size": hostile, "limit": hostile}
    write_results(tmp_path / "a", results=results, model_name=hostile, config=config)
    lines = report_of(tmp_path, f"{hostile}={tmp_path / 'a'}")[0].splitlines()
    assert not [line for line in lines if "<script" in line.replace("\\<script", "")]
    assert [line for line in lines if line.startswith("# ")] == ["# Results beside the paper's"]
    assert sum("\\<script>alert(1)\\</script> \\| \\[a\\](b) # A heading \\`" in line for line in lines) > 3  # control


def write_answers(path, *rows: tuple[str, float | None]):
    """Answers of a task and a score each, the first also under a perturbation that makes it wrong."""
    answers = [Answer(str(n), task, "?", [], [], "x", score) for n, (task, score) in enumerate(rows)]
    answers.append(replace(answers[0], score=0.0, perturbation="blur", strength=1.0))
    path.write_text("".join(answer.as_line() for answer in answers), encoding="utf-8")
    return path


def test_scores_are_printed_by_task_and_metric_those_of_answers_too(tmp_path, capsys):
    answers = write_answers(tmp_path / "answers.jsonl", ("a", 1.0), ("a", 1.0), ("b", 0.0), ("b", 1.0), ("b", None))
    text, data = report_of(tmp_path, write_results(tmp_path, **FEW), f"asked={answers}")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "mine, pope: pope_accuracy 0.8000 (standard error 0.0200), 10 of 9000 documents"
    assert "asked, a: exact_match 1.0000 (standard error 0.0000), 2 of 2 documents" in printed
    assert "asked, b: exact_match 0.5000 (standard error 0.5000), 2 of 2 documents" in printed
    assert "| b | exact_match | 0.5000 | 0.5000 | 2 of 2 |" in text
    assert [model["name"] for model in json.loads(data)["models"]] == ["mine", "asked"]


def test_answers_alone_make_a_report_unless_none_has_a_score(tmp_path, capsys):
    known = write_answers(tmp_path / "known.jsonl", ("a", 1.0))
    assert "| a | exact_match | 1.0000 | – | 1 of 1 |" in report_of(tmp_path, known)[0]
    unknown = write_answers(tmp_path / "unknown.jsonl", ("a", None))
    assert main(["report", str(unknown), "-o", str(tmp_path / "r")]) == 2
    assert "unknown.jsonl: no answer has a score" in capsys.readouterr().err
