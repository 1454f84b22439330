"""evaluation/groups.py: who is answered worse, against figures counted by hand; what is in no group is told."""

import pytest

from omnifusion_hf.evaluation.answers import Answer
from omnifusion_hf.evaluation.metrics import difference_interval, wilson_interval
from omnifusion_hf.evaluation.robustness import plots as robustness_plots
from omnifusion_hf.evaluation.robustness.groups import (
    as_markdown,
    compare_groups,
    is_answered,
    match_images,
    read_groups,
)
from omnifusion_hf.evaluation.robustness.plots import draw_groups


def answer(name, images, said="red", score=1.0, **more) -> Answer:
    return Answer(str(name), "t", "What?", images, ["red"], said, score, **more)


def write_csv(tmp_path, text: str):
    (tmp_path / "groups.csv").write_text(text, encoding="utf-8")
    return tmp_path / "groups.csv"


@pytest.mark.parametrize(
    "said", ["", "  \n", "I'm sorry, but I cannot", "Unanswerable.", "I can’t tell", "Извините, нет"]
)
def test_declined_is_not_answered(said):
    assert not is_answered(answer(0, [], said))


@pytest.mark.parametrize("said", ["red", "no", "Sorrel", "I see a man who says sorry.", "0", "Unknownville"])
def test_answers_count_as_answers(said):
    assert is_answered(answer(0, [], said))


def test_csv_with_several_columns(tmp_path):
    path = write_csv(tmp_path, '\ufeffimage,age,"place, time"\na.png,old,\nb/c.png, young ,"day, out"\n')
    assert read_groups(path) == {
        "age": {"a.png": "old", "b/c.png": "young"},
        "place, time": {"a.png": "", "b/c.png": "day, out"},
    }


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "first line"),
        ("image\na.png\n", "first line"),
        ("file,group\na.png,x\n", "first line"),
        ("image,group\na.png\n", "line 2"),
        ("image,group\na.png,x,y\n", "line 2"),
        ("image,group\na.png,x\na.png,y\n", "line 3: a.png comes a second time"),
        ("image,group\na.png,x\n./a.png,y\n", "line 3: a.png comes a second time"),
        ("image,group\n,x\n", "line 2 names no image"),
        ('image,group\n"a.png,x\n', "groups.csv, line 2 is no CSV"),
        ('image,group\na.png,x\n"b.png" ,y\n', "groups.csv, line 3 is no CSV"),
        ('image,group\na.png,"x\ny"\nb.png\n', "line 4 has another number of cells"),
        ("image;group\na.png;x\n", "separated by commas.* first line is 'image;group'"),
        ("image,group,group\na.png,x,y\n", "each column needs a name of its own"),
        ("image,group,\na.png,x,y\n", "each column needs a name of its own"),
    ],
)
def test_other_csvs_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_groups(write_csv(tmp_path, text))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_csv_of_another_encoding_is_named(tmp_path, encoding):
    path = tmp_path / "groups.csv"
    path.write_text("image,group\nü.png,x\n", encoding=encoding)
    with pytest.raises(ValueError, match="groups.csv is not UTF-8"):
        read_groups(path)


def test_a_path_from_here_is_that_path(tmp_path):
    groups = read_groups(write_csv(tmp_path, "image,group\n./a/1.png,x\n"))
    assert match_images(list(groups["group"]), [answer(0, ["./a/1.png"])]).line_of == {"./a/1.png": "a/1.png"}


def test_a_column_without_any_group_is_refused():
    asked = [answer(0, ["0.png"]), answer(1, ["1.png"])]
    compare_groups({"age": {"0.png": "old", "1.png": ""}}, asked)  # control: one has
    with pytest.raises(ValueError, match="no image that was asked about has a group in the column 'place'"):
        compare_groups({"age": {"0.png": "old"}, "place": {"0.png": ""}}, asked)


def test_dollars_in_names_are_dollars(tmp_path, monkeypatch):
    """Not the marks of a formula, which may be one that cannot be drawn; names stand as they were written."""
    shown = []
    monkeypatch.setattr(robustness_plots, "save", lambda figure, path: shown.append(figure))
    names = {"0.png": r"$\frac$", "1.png": "$10-$20"}
    result = compare_groups({"$price_$": names}, [answer(0, ["0.png"]), answer(1, ["1.png"])])
    draw_groups(tmp_path / "groups.png", result)
    (axes,) = shown[0].axes
    texts = [axes.title, axes._left_title, *axes.get_yticklabels()]
    assert [text.get_text() for text in texts[1:]] == ["$price_$", "$10-$20 (n = 1)", r"$\frac$ (n = 1)"]
    shown[0].savefig(tmp_path / "groups.png")  # a formula would fail here
    assert not any(text.get_parse_math() for text in texts[1:])


def test_images_are_found_by_the_end_of_their_path():
    asked = [answer(0, ["data/a/1.png", "data/b/1.png", "data/b/11.png"])]
    matches = match_images(["a/1.png", "data/b/1.png", "1.png", "c.png"], asked)
    assert matches.line_of == {"data/a/1.png": "a/1.png", "data/b/1.png": "data/b/1.png"}
    assert matches.unlisted == ["data/b/11.png"] and matches.unasked == ["1.png", "c.png"]
    with pytest.raises(ValueError, match="data/a/1.png and data/b/1.png"):
        match_images(["1.png"], asked)


def test_figures_of_groups(tmp_path):
    answers = [answer(n, [f"x/{n}.png"], score=float(n % 2)) for n in range(4)]  # right: 1, 3
    answers += [answer(4, ["x/4.png"], "", 0.0), answer(5, ["x/5.png"]), answer(6, ["x/6.png"]), answer(7, [])]
    answers.append(answer(0, ["x/0.png"], perturbation="blur", strength=1.0))
    groups = {"g": {"0.png": "a", "1.png": "a", "2.png": "a", "3.png": "b", "4.png": "b", "5.png": "", "9.png": "b"}}
    result = compare_groups(groups, answers)
    assert result["images_not_in_csv"] == ["x/6.png"] and result["images_not_asked_about"] == ["9.png"]
    first, second = result["columns"]["g"]["groups"]
    assert result["columns"]["g"]["questions_in_no_group"] == 2  # 5 and 6; 7 has no image
    assert (first["group"], first["n"], first["images"]) == ("a", 3, 3)
    assert first["accuracy"]["value"] == pytest.approx(1 / 3)
    assert first["accuracy"]["interval"] == list(wilson_interval(1, 3))
    assert first["accuracy"]["difference"] == pytest.approx(1 / 3 - 1 / 2)
    assert first["accuracy"]["difference_interval"] == list(difference_interval(1, 3, 1, 2))
    assert (first["answer_rate"]["value"], second["answer_rate"]["value"]) == (1, 0.5)
    page = as_markdown(result)
    assert (
        "| a | 3 | 3 | 1.000 (0.439 to 1.000) | 0.333 (0.061 to 0.792) | -0.167 (" in page and "1 (`x/6.png`)" in page
    )
    draw_groups(tmp_path / "groups.png", result)
    assert (tmp_path / "groups.png").read_bytes().startswith(b"\x89PNG")


def test_a_question_about_two_images_counts_in_both_their_groups():
    result = compare_groups({"g": {"0.png": "a", "1.png": "b"}}, [answer(0, ["0.png", "1.png"]), answer(1, ["1.png"])])
    assert [row["n"] for row in result["columns"]["g"]["groups"]] == [1, 2]
    b = result["columns"]["g"]["groups"][1]
    assert b["accuracy"]["difference"] is None and "| – |" in as_markdown(result)


def test_a_csv_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="no image of the CSV"):
        compare_groups({"g": {"z.png": "a"}}, [answer(0, ["0.png"])])


def test_hostile_names_stay_names(tmp_path):
    hostile = "<b>|`a`"
    groups = {hostile: {"a.png": hostile, "b.png": "b", "c`.png": "c"}}
    page = as_markdown(compare_groups(groups, [answer(0, ["a.png"]), answer(1, ["b.png"]), answer(2, ["<i>.png"])]))
    escaped = "\\<b>\\|\\`a\\`"
    assert f"## {escaped}\n" in page and f"\n| {escaped} | 1 | 1 |" in page
    assert "1 (`<i>.png`)" in page and "1 (``c`.png``)" in page
