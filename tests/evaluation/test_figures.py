"""evaluation/figures.py: axes, lines and labels of the radar plot."""

import pytest
from PIL import Image

from omnifusion_hf.evaluation.figures import radar, radar_columns
from omnifusion_hf.evaluation.paper_tables import ENCODERS, RADAR_COLUMNS, RADAR_ROWS
from omnifusion_hf.figures import save_figure


def test_axes_are_the_papers_and_other_measured_columns_in_percent_with_a_gap_where_nothing_was_measured():
    columns = radar_columns({"x": {"POPE": 1.0, "DocVQA": 2.0, "TeX, edit distance": 0.1}})
    assert columns == [*ENCODERS.columns, "DocVQA"]
    figure = radar({"mine": {"POPE": 80.0, "MMMU": 30.0}})
    *papers, mine = [line.get_ydata().tolist() for line in figure.axes[0].lines]
    wanted = [{"POPE": 80.0, "MMMU": 30.0}.get(column) for column in RADAR_COLUMNS]
    assert [None if value != value else value for value in mine] == [*wanted, wanted[0]]  # the first axis closes it
    rows = [[row[column] for column in RADAR_COLUMNS] for row in RADAR_ROWS.values()]
    assert papers == [[*row, row[0]] for row in rows]


@pytest.mark.parametrize("name", ["mine", "$\\frac$", "from $10 to $20", "_mine"])
def test_a_models_name_is_shown_unchanged_with_its_number_of_measured_axes(tmp_path, name):
    figure = radar({name: {"POPE": 80.0}})
    labels = figure.legends[0].get_texts()
    assert [label.get_text() for label in labels] == [*RADAR_ROWS, f"{name} (1 of 9 measured)"]
    save_figure(figure, tmp_path / "radar.png", dpi=120)  # a broken formula would fail here
    assert Image.open(tmp_path / "radar.png").size > (500, 500)
    assert not any(label.get_parse_math() for label in labels)
