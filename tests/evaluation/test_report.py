"""`omnifusion report` puts what was measured beside the paper's numbers and invents none."""

import json
import re
import sys

import pytest
from lmms_results import POPE, RECORD, write_results
from PIL import Image

from omnifusion_hf.cli import main
from omnifusion_hf.evaluation.paper_tables import ENCODERS, TABLES
from omnifusion_hf.evaluation.robustness.radar import draw_radar, radar, radar_columns


SCORES = {
    "pope": POPE,
    "mmbench_en_dev": {"gpt_eval_score,none": 61.5},
    "tex": {"edit_distance,none": 0.25},
    "of_my_own": {"exact_match,none": 0.123456},
}


@pytest.fixture
def report(tmp_path):
    """A report of two models, one measured on few documents; its text, data and folder."""
    write_results(tmp_path / "full", results=SCORES)
    write_results(tmp_path / "part", **{"n-samples": {"pope": {"original": 9000, "effective": 10}}})
    folder = tmp_path / "report"
    assert main(["report", str(tmp_path / "full"), f"part={tmp_path / 'part'}", "-o", str(folder)]) == 0
    return (folder / "report.md").read_text(), json.loads((folder / "report.json").read_text()), folder


def row(text: str, name: str, table: int = 0) -> list[str]:
    found = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.M)
    return found[table].split(" | ")


def test_measured_rows_stand_below_the_papers_in_its_unit(report):
    text, _, _ = report
    assert row(text, "CLIP ViT-L/14")[5] == "84.50"
    assert row(text, "**mine**") == ["–"] * 5 + ["80.00", "61.50", "–", "–"]
    for table, title in enumerate(t.title for t in TABLES):
        assert f"## {title}\n" in text and len(row(text, "**mine**", table)) == len(TABLES[table].columns)
    assert row(text, "**mine**", len(TABLES) - 1) == ["0.25"]


def test_a_part_of_the_documents_is_marked(report):
    text, _, _ = report
    assert row(text, "**part**")[5] == "80.00*" and "measured on a part" in text
    assert "| pope | pope_accuracy | 0.8000 | 0.0200 | 10 of 9000 |" in text


def test_tasks_that_the_paper_lacks_are_listed(report):
    text, data, _ = report
    assert "| of_my_own | exact_match | 0.1235 | – | – |" in text
    assert {"task": "of_my_own", "value": 0.123456}.items() <= data["models"][0]["scores"][-1].items()


def test_missing_benchmarks_are_null_not_0(report):
    _, data, _ = report
    columns = data["models"][0]["paper_columns"]
    assert columns["VizWiz"] is None and columns["POPE"] == pytest.approx(80)
    assert sum(value is not None for value in columns.values()) == 3


def test_report_json_holds_the_papers_rows(report):
    _, data, _ = report
    assert data["paper"][0]["rows"]["InternViT-6B"]["MMMU"] == 35.4
    assert len(data["paper"]) == len(TABLES)


def test_the_plot_is_an_image_and_nothing_half_written_stays(report):
    *_, folder = report
    assert Image.open(folder / "radar.png").size > (500, 500)
    assert sorted(path.name for path in folder.iterdir()) == ["radar.png", "report.json", "report.md"]


def test_a_run_says_how_it_was_asked(tmp_path):
    write_results(tmp_path / "a", config={"model_args": f"pretrained=x,log_images={tmp_path}", "batch_size": "8"})
    for written in (False, True):
        if written:
            (tmp_path / "pope").mkdir()
            (tmp_path / "pope/run.json").write_text(json.dumps(RECORD))
        main(["report", str(tmp_path / "a"), "-o", str(tmp_path / "r")])
        text = (tmp_path / "r/report.md").read_text()
        assert ("| mine | pope | torch 9.9 | float32 | abababababab | cdcdcdcdcdcd |" in text) is written
        assert ("No record of versions" in text) is not written


def test_a_folder_of_records_that_is_not_found_from_here_is_named(tmp_path, monkeypatch):
    write_results(tmp_path / "a", config={"model_args": "pretrained=x,log_images=kept"})
    (tmp_path / "kept/pope").mkdir(parents=True)
    (tmp_path / "kept/pope/run.json").write_text(json.dumps(RECORD))
    for folder, found in ((tmp_path, True), (tmp_path / "a", False)):
        monkeypatch.chdir(folder)
        main(["report", str(tmp_path / "a"), "-o", str(tmp_path / "r")])
        text = (tmp_path / "r/report.md").read_text()
        assert ("torch 9.9" in text) is found and ("log_images=kept was not found from here" in text) is not found
        assert "run lmms-eval with log_images" not in text


def test_what_was_measured_as_not_a_number_is_null_in_json_that_others_read(tmp_path):
    write_results(tmp_path, results={"pope": {"pope_accuracy,none": float("nan"), "pope_f1_score,none": 0.5}})
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r")]) == 0
    text = (tmp_path / "r/report.json").read_text()
    data = json.loads(text, parse_constant=pytest.fail)
    assert data["models"][0]["paper_columns"]["POPE"] is None
    assert row((tmp_path / "r/report.md").read_text(), "**mine**")[5] == "–"


def test_axes_are_the_papers_and_what_was_measured_beside():
    assert radar_columns({"x": {"POPE": 1.0, "DocVQA": 2.0, "TeX, edit distance": 0.1}}) == [
        *ENCODERS.columns,
        "DocVQA",
    ]


def test_lines_have_a_gap_where_nothing_was_measured():
    figure = radar({"mine": {"POPE": 80.0, "MMMU": 30.0}})
    assert labels_of(figure)[-1] == "mine (2 of 9 measured)" and len(labels_of(figure)) == 4
    *papers, mine = [line.get_ydata().tolist() for line in figure.axes[0].lines]
    assert [value for value in mine if value == value] == [80, 30] and len(mine) == 10  # the first axis closes it
    assert len(papers) == 3 and all(value == value for line in papers for value in line)


def labels_of(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("name", ["$\\frac$", "from $10 to $20", "_mine"])
def test_a_models_name_stands_in_the_plot_as_it_is(tmp_path, name):
    figure = radar({name: {"POPE": 80.0}})
    assert labels_of(figure)[-1] == f"{name} (1 of 9 measured)"
    assert not any(text.get_parse_math() for text in figure.legends[0].get_texts())
    draw_radar(tmp_path / "radar.png", {name: {"POPE": 80.0}})
    assert Image.open(tmp_path / "radar.png").size > (500, 500)


def test_hostile_names_stay_names_in_the_report(tmp_path):
    hostile = "<script>alert(1)</script> | [a](b)\n# A heading `"
    results = {hostile: {f"{hostile},none": 0.5}, "pope": POPE}
    config = {"model_args": f"pretrained={hostile},log_images={hostile}", "batch_size": hostile, "limit": hostile}
    write_results(tmp_path / "a", results=results, model_name=hostile, config=config)
    assert main(["report", f"{hostile}={tmp_path / 'a'}", "-o", str(tmp_path / "r")]) == 0
    lines = (tmp_path / "r/report.md").read_text().splitlines()
    assert not [line for line in lines if "<script" in line.replace("\\<script", "")]
    assert [line for line in lines if line.startswith("# ")] == ["# Results beside the paper's"]
    assert sum("\\<script>alert(1)\\</script> \\| \\[a\\](b) # A heading \\`" in line for line in lines) > 3  # control


def test_nothing_to_report_is_a_mistake_that_says_what_to_give(tmp_path, capsys):
    for results in ([], [str(tmp_path)]):
        assert main(["report", *results, "-o", str(tmp_path / "r")]) == 2
        assert "--output_path" in capsys.readouterr().err


def test_missing_matplotlib_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["report", str(write_results(tmp_path)), "-o", str(tmp_path / "r")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("pip install 'omnifusion_hf[eval]'.")
    assert not list((tmp_path / "r").iterdir())


def test_tasks_prints_the_folder_of_tasks(capsys):
    assert main(["tasks"]) == 0
    assert capsys.readouterr().out.strip().endswith("omnifusion_hf/evaluation/tasks")
