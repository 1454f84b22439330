"""mutants.py makes every kind of change, and sees which ones the tests notice."""

import ast
from pathlib import Path

import mutants
import pytest


CODE = '''
def f(a, b):
    """Text."""
    c = a + 1
    if not a < b and a == 5:
        raise ValueError(str(b)[:9])
    return c
def g():
    return None
'''
EXPECTED = {
    "comparison": {"a <= b", "a != 5"},
    "operator": {"c = a - 1", "if not a < b or a == 5"},
    "not": {"if not not a < b"},
    "constant": {"a + 2", "a == 6"},
    "return": {"return None"},
    "statement": {"pass"},
}


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A package of one file with a test of it."""
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    for folder in ("omnifusion_hf/model", "tests/model"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("omnifusion_hf/__init__.py", "omnifusion_hf/model/__init__.py"):
        (tmp_path / name).touch()
    (tmp_path / "omnifusion_hf/model/part_omnifusion.py").write_text(CODE)
    return tmp_path


def test_every_kind_of_change_is_made_and_nothing_else(clone):
    made = list(mutants.mutants_of("omnifusion_hf/model/part_omnifusion.py"))
    assert {mutant.kind for mutant in made} == EXPECTED.keys() == mutants.CHANGES.keys()
    sources = {mutant.key: mutant.source() for mutant in made}
    assert len(set(sources.values())) == len(made) == 10 and ast.unparse(ast.parse(CODE)) not in sources.values()
    for mutant in made:
        assert any(piece in sources[mutant.key].replace("(", "").replace(")", "") for piece in EXPECTED[mutant.kind])


def test_a_change_that_the_test_sees_is_found_and_another_survives(clone):
    test, other = (clone / f"tests/model/test_{name}.py" for name in ("part", "whole"))
    test.write_text("from omnifusion_hf.model.part_omnifusion import f\n\n\ndef test(): assert f(2, 1) == 3\n")
    other.write_text("from omnifusion_hf.model.part_omnifusion import g\n\n\ndef test(): assert g() is None\n")
    made = {mutant.source(): mutant for mutant in mutants.mutants_of("omnifusion_hf/model/part_omnifusion.py")}
    [seen], [unseen] = ([made[source] for source in made if piece in source] for piece in ("a - 1", "a == 6"))
    found = mutants.run([seen, unseen], clone / "log")
    assert (found[seen.key], found[unseen.key]) == (False, True)
    lines = (clone / "log").read_text()
    test.write_text("def test(): pass\n")
    assert mutants.run([seen, unseen], clone / "log") == found and (clone / "log").read_text() == lines  # continued
    assert mutants.run([seen], clone / "other")[seen.key]  # control: a test that sees nothing


def test_a_change_that_only_another_test_of_the_folder_sees_is_found(clone):
    for name, body in (("part", "pass"), ("whole", "assert f(2, 1) == 3")):
        code = f"from omnifusion_hf.model.part_omnifusion import f\n\n\ndef test(): {body}\n"
        (clone / f"tests/model/test_{name}.py").write_text(code)
    [seen] = (
        each for each in mutants.mutants_of("omnifusion_hf/model/part_omnifusion.py") if "a - 1" in each.source()
    )
    assert not mutants.run([seen], clone / "log")[seen.key]
