"""Files and folders are complete or absent."""

from contextlib import nullcontext

import pytest

from omnifusion_hf import io as files


def test_staged_folder_appears_when_complete(tmp_path):
    with files.staged_folder(tmp_path / "out") as part:
        (part / "file").write_text("new")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_staged_folder_goes_when_interrupted_and_keeps_the_old_one(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), files.staged_folder(tmp_path / "out") as part:
        (part / "file").write_text("new")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "old"


def test_of_two_that_make_one_folder_each_is_whole_and_the_first_stays_where_nothing_is_replaced(tmp_path):
    for replace, stays in ((True, "b"), (False, "a")):
        path = tmp_path / f"out {replace}"
        with pytest.raises(ValueError, match="made by another process meanwhile") if not replace else nullcontext():
            with files.staged_folder(path, replace) as second:
                (second / "b").write_text("b")
                with files.staged_folder(path, replace) as first:  # another process, that begins later and is faster
                    (first / "a").write_text("a")
                assert [file.name for file in path.iterdir()] == ["a"] and [f.name for f in second.iterdir()] == ["b"]
        assert [file.name for file in path.iterdir()] == [stays]
    assert len(list(tmp_path.iterdir())) == 2


def test_whatever_a_reader_raises_becomes_one_line_that_begins_with_the_place():
    errors = {RecursionError("too\n deep"): "too deep", MemoryError(): "MemoryError", KeyError("x"): "KeyError 'x'"}
    for error, said in errors.items():
        with pytest.raises(ValueError) as raised, files.named("a file, line 3"):
            raise error
        assert str(raised.value) == f"a file, line 3: {said}"
    with pytest.raises(KeyboardInterrupt), files.named("a file"):
        raise KeyboardInterrupt


def test_file_is_whole_or_the_old_one(tmp_path, monkeypatch):
    files.write_whole(tmp_path / "file", "old")
    monkeypatch.setattr(files.os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        files.write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_yaml_keeps_words_and_refuses_what_stands_twice():
    text = "a: no\nb: TRUE\nc: truely\nd: &list [1, {x: false}]\ne: *list"
    listed = [1, {"x": False}]
    assert files.read_yaml(text, "x") == {"a": "no", "b": True, "c": "truely", "d": listed, "e": listed}
    for twice in ("a: 1\nb: 1\na: 1", "c: {a: 1, a: 2}"):
        with pytest.raises(ValueError, match="r.yaml is not YAML: `a` stands twice in .* line"):
            files.read_yaml(twice, "r.yaml")
