"""Files and folders are complete or absent; errors in users' files are one line."""

from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest

from omnifusion_hf import io


def test_a_file_and_a_folder_are_whole_or_the_old_ones_when_interrupted(tmp_path, monkeypatch):
    io.write_whole(tmp_path / "out/file", "old")
    with pytest.raises(KeyboardInterrupt), io.staged_folder(tmp_path / "out") as part:
        (part / "file").write_text("new")
        raise KeyboardInterrupt
    monkeypatch.setattr(io.os, "replace", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        io.write_whole(tmp_path / "out/file", "new")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]
    assert (tmp_path / "out/file").read_text() == "old"


def test_a_folder_appears_when_it_is_complete_and_of_two_processes_that_make_it_one_wins(tmp_path):
    for replace, stays in ((True, "b"), (False, "a")):
        path = tmp_path / f"out {replace}"
        with pytest.raises(ValueError, match="made by another process meanwhile") if not replace else nullcontext():
            with io.staged_folder(path, replace) as second:
                (second / "b").write_text("b")
                with io.staged_folder(path, replace) as first:  # another process, that begins later and is faster
                    (first / "a").write_text("a")
                    assert not path.exists()
                assert [file.name for file in path.iterdir()] == ["a"] and [f.name for f in second.iterdir()] == ["b"]
        assert [file.name for file in path.iterdir()] == [stays]
    assert len(list(tmp_path.iterdir())) == 2


def test_any_error_of_a_reader_becomes_one_line_that_begins_with_the_place():
    errors = {RecursionError("too\n deep"): "too deep", MemoryError(): "MemoryError", KeyError("x"): "KeyError 'x'"}
    for error, said in errors.items():
        with pytest.raises(ValueError) as raised, io.named("a file, line 3"):
            raise error
        assert str(raised.value) == f"a file, line 3: {said}"
    with pytest.raises(KeyboardInterrupt), io.named("a file"):
        raise KeyboardInterrupt


def test_yaml_is_version_1_2_and_duplicate_keys_and_broken_text_are_refused_in_one_line_that_names_the_file():
    text = "a: no\nb: TRUE\nc: truely\nd: &list [1, {x: false}]\ne: *list\nf: 1e-3\ng: 010"
    listed = [1, {"x": False}]
    expected = {"a": "no", "b": True, "c": "truely", "d": listed, "e": listed, "f": 0.001, "g": 10}
    assert io.read_yaml(text, "x") == expected
    for duplicate, line in (("a: 1\nb: 1\na: 1", 3), ("c: {a: 1, a: 2}", 1)):
        with pytest.raises(ValueError, match=f'r.yaml is not YAML: found duplicate key "a" .* in line {line}'):
            io.read_yaml(duplicate, "r.yaml")
    for broken in ("a: [1", "a: b: c", "\t- a", "[" * 200_000, "{a: [" * 5000):
        with pytest.raises(ValueError, match="^r.yaml is not YAML: .+$"):
            io.read_yaml(broken, "r.yaml")


def test_a_recipe_is_a_file_or_a_name_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pretrain", "pretrain.yaml", "data/finetune_mixture.yaml"):
        assert io.recipe_path(name).parents[len(Path(name).parents) - 1] == io.RECIPES
    assert io.recipe_path("absent.yaml") == Path("absent.yaml")
    (tmp_path / "pretrain").touch()
    assert io.recipe_path("pretrain") == Path("pretrain")  # a file of the user comes first
