"""robustness/groups.py: figures of groups against figures counted by hand; images without a group are reported."""

import pytest

from omnifusion_hf.evaluation.answers import Answer
from omnifusion_hf.evaluation.metrics import difference_interval, wilson_interval
from omnifusion_hf.evaluation.robustness import groups as module
from omnifusion_hf.evaluation.robustness import plots
from omnifusion_hf.evaluation.robustness.groups import as_markdown, compare_groups, match_images


def answer(name, *images: str, said="red", score=1.0, **more) -> Answer:
    return Answer(str(name), "t", "What?", list(images), ["red"], said, score, **more)


def read(tmp_path, text: str | bytes) -> dict:
    (tmp_path / "groups.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return module.read_groups(tmp_path / "groups.csv")


REFUSALS = ("", "  \n", "I'm sorry, but I cannot", "Unanswerable.", "I can’t tell", "Извините, нет")
ANSWERS = ("red", "no", "Sorrel", "I see a man who says sorry.", "0", "Unknownville")


@pytest.mark.parametrize("said", REFUSALS + ANSWERS)
def test_empty_answers_and_refusals_do_not_count_as_answers(said):
    assert module.is_answered(answer(0, said=said)) is (said in ANSWERS)


def test_a_csv_may_have_several_columns(tmp_path):
    text = '\ufeffimage,age,"place, time"\na.png,old,\nb/c.png, young ,"day, out"\n'
    age, place = {"a.png": "old", "b/c.png": "young"}, {"a.png": "", "b/c.png": "day, out"}
    assert read(tmp_path, text) == {"age": age, "place, time": place}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "first line"), ("image\na.png\n", "first line"), ("file,group\na.png,x\n", "first line"),
        ("image,group\na.png\n", "line 2"), ("image,group\na.png,x,y\n", "line 2"),
        ("image,group\na.png,x\na.png,y\n", "line 3: a.png occurs a second time"),
        ("image,group\na.png,x\n./a.png,y\n", "line 3: a.png occurs a second time"),
        ("image,group\n,x\n", "line 2 names no image"), ('image,group\n"a.png,x\n', "groups.csv, line 2 is not CSV"),
        ('image,group\na.png,x\n"b.png" ,y\n', "groups.csv, line 3 is not CSV"),
        ('image,group\na.png,"x\ny"\nb.png\n', "line 4 has another number of cells"),
        ("image;group\na.png;x\n", "separated by commas.* first line is 'image;group'"),
        ("image,group,group\na.png,x,y\n", "each column needs a name of its own"),
        ("image,group,\na.png,x,y\n", "each column needs a name of its own"),
        *(("image,group\nü.png,x\n".encode(name), "groups.csv is not UTF-8") for name in ("utf-16", "latin-1")),
    ],
)  # fmt: skip
def test_other_csvs_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_a_column_or_a_csv_without_a_group_of_any_image_is_refused():
    answers = [answer(0, "0.png"), answer(1, "1.png")]
    compare_groups({"age": {"0.png": "old", "1.png": ""}}, answers)  # control: one group is enough
    with pytest.raises(ValueError, match="no image with an answer has a group in the column 'place'"):
        compare_groups({"age": {"0.png": "old"}, "place": {"0.png": ""}}, answers)
    with pytest.raises(ValueError, match="no image of the CSV"):
        compare_groups({"g": {"z.png": "a"}}, answers)


def drawn(tmp_path, monkeypatch, result):
    """The axes of the plot of one column."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, *_: figures.append(figure))
    plots.draw_groups(tmp_path / "groups.png", result)
    (axes,) = figures[0].axes
    figures[0].savefig(tmp_path / "groups.png")  # names that are broken formulas would fail here
    return axes


def test_names_in_the_plot_are_never_formulas(tmp_path, monkeypatch):
    names = {"$price_$": {"0.png": r"$\frac$", "1.png": "$10-$20"}}
    axes = drawn(tmp_path, monkeypatch, compare_groups(names, [answer(0, "0.png"), answer(1, "1.png")]))
    assert axes.get_title("left") == "$price_$"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["$10-$20 (n = 1)", r"$\frac$ (n = 1)"]


def test_images_are_found_by_the_end_of_their_path_where_a_dot_before_it_does_not_count(tmp_path):
    answers = [answer(0, "data/a/1.png", "data/b/1.png", "data/b/11.png")]
    matches = match_images(["a/1.png", "data/b/1.png", "1.png", "c.png"], answers)
    assert matches.line_of == {"data/a/1.png": "a/1.png", "data/b/1.png": "data/b/1.png"}
    assert matches.unlisted == ["data/b/11.png"] and matches.unused == ["1.png", "c.png"]
    with pytest.raises(ValueError, match="data/a/1.png and data/b/1.png"):
        match_images(["1.png"], answers)
    groups = read(tmp_path, "image,group\n./a/1.png,x\n")["group"]
    assert match_images(list(groups), [answer(0, "./a/1.png")]).line_of == {"./a/1.png": "a/1.png"}


@pytest.fixture
def compared() -> dict:
    """Group a: images 0 to 2, answer 1 right; b: 3 and 4, 3 right, 4 empty; 5 without a group, 6 without a line."""
    answers = [answer(n, f"x/{n}.png", score=float(n % 2)) for n in range(4)]
    answers += [answer(4, "x/4.png", said="", score=0.0), answer(5, "x/5.png"), answer(6, "x/6.png"), answer(7)]
    answers.append(answer(0, "x/0.png", perturbation="blur", strength=1.0))
    groups = {"0.png": "a", "1.png": "a", "2.png": "a", "3.png": "b", "4.png": "b", "5.png": "", "9.png": "b"}
    return compare_groups({"g": groups}, answers)


def test_figures_of_groups_and_images_and_questions_without_a_group_are_counted_and_shown(compared):
    first, second = compared["columns"]["g"]["groups"]
    assert (first["group"], first["n"], first["images"]) == ("a", 3, 3)
    value, difference = pytest.approx(1 / 3), pytest.approx(1 / 3 - 1 / 2)
    intervals = {"interval": list(wilson_interval(1, 3)), "difference_interval": list(difference_interval(1, 3, 1, 2))}
    assert first["accuracy"] == {"value": value, "difference": difference} | intervals
    assert (first["answer_rate"]["value"], second["answer_rate"]["value"]) == (1, 0.5)
    assert compared["images_not_in_csv"] == ["x/6.png"] and compared["images_not_asked_about"] == ["9.png"]
    assert compared["columns"]["g"]["questions_in_no_group"] == 2  # 5 and 6; 7 has no image
    page = as_markdown(compared)
    assert "| a | 3 | 3 | 1.000 (0.439 to 1.000) | 0.333 (0.061 to 0.792) | -0.167 (" in page
    assert "1 (`x/6.png`)" in page


def test_the_plot_has_a_point_and_an_interval_per_group_and_the_mean(compared, tmp_path, monkeypatch):
    rows = compared["columns"]["g"]["groups"]
    *lines, mean = [list(line.get_xdata()) for line in drawn(tmp_path, monkeypatch, compared).lines]
    assert lines == [each for row in rows for each in (row["accuracy"]["interval"], [row["accuracy"]["value"]])]
    assert mean == [pytest.approx(2 / 5)] * 2


def test_a_question_about_two_images_counts_in_both_groups():
    result = compare_groups({"g": {"0.png": "a", "1.png": "b"}}, [answer(0, "0.png", "1.png"), answer(1, "1.png")])
    a, b = result["columns"]["g"]["groups"]
    assert (a["n"], b["n"]) == (1, 2)
    assert b["accuracy"]["difference"] is None and "| – |" in as_markdown(result)  # nothing is only in a


def test_hostile_names_stay_names():
    hostile, escaped = "<b>|`a`", "\\<b>\\|\\`a\\`"
    groups = {hostile: {"a.png": hostile, "b.png": "b", "c`.png": "c"}}
    page = as_markdown(compare_groups(groups, [answer(0, "a.png"), answer(1, "b.png"), answer(2, "<i>.png")]))
    assert f"## {escaped}\n" in page and f"\n| {escaped} | 1 | 1 |" in page
    assert "1 (`<i>.png`)" in page and "1 (``c`.png``)" in page
