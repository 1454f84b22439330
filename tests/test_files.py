"""Files and folders are complete or absent."""

import pytest

from omnifusion_hf import files


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
