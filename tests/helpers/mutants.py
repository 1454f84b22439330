"""Mutation testing: changes one place of a source file and runs the file's mirror test, which should then fail, and,
if it does not, all tests of the folder.

    python tests/helpers/mutants.py --count 100     # a sample over model/ and training/
    python tests/helpers/mutants.py --count 20 omnifusion_hf/model/views_omnifusion.py

Each result is a line of `.mutants.jsonl`, where an interrupted run continues. The report lists the mutants that
survived and their rate. A mutant that exceeds the time limit counts as found.
"""

import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


ROOT = Path(__file__).parents[2]
FOLDERS = ("omnifusion_hf/model", "omnifusion_hf/training")
SWAPS = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq, ast.In: ast.NotIn, ast.Is: ast.IsNot, ast.Add: ast.Sub}
SWAPS |= {ast.And: ast.Or}
SWAPS |= {new: old for old, new in SWAPS.items()}
REMOVABLE = (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise)
TIME_LIMIT = 3600  # seconds


@dataclass(frozen=True)
class Mutant:
    """A change of the node with this index in `ast.walk` order; `position`: of the removed statement in its body."""

    file: str
    line: int
    kind: str
    node: int
    position: int = 0

    @property
    def key(self) -> str:
        return ":".join(map(str, vars(self).values()))

    def source(self) -> str:
        tree = ast.parse((ROOT / self.file).read_text(encoding="utf-8"))
        CHANGES[self.kind](list(ast.walk(tree))[self.node], self.position)
        return ast.unparse(ast.fix_missing_locations(tree))


def one_more(value: int | float) -> int | float:
    return not value if isinstance(value, bool) else value + 1


CHANGES = {  # of a node, or of the statement at a position in its body
    "comparison": lambda node, _: node.ops.__setitem__(0, SWAPS[type(node.ops[0])]()),
    "operator": lambda node, _: setattr(node, "op", SWAPS[type(node.op)]()),
    "not": lambda node, _: setattr(node, "operand", ast.UnaryOp(ast.Not(), node.operand)),
    "constant": lambda node, _: setattr(node, "value", one_more(node.value)),
    "return": lambda node, _: setattr(node, "value", ast.Constant(None)),
    "statement": lambda node, position: node.body.__setitem__(position, ast.Pass()),
}


def kind_of(node: ast.AST) -> str | None:
    """The change that applies to a node itself."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in SWAPS:
            return "comparison"
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
            return "operator"
        case ast.UnaryOp(op=ast.Not()):
            return "not"
        case ast.Constant(value=int() | float()):
            return "constant"
        case ast.Return(value=ast.expr() as value) if getattr(value, "value", ...) is not None:
            return "return"


def mutants_of(file: str) -> Iterator[Mutant]:
    """All that could change what the code does: not docstrings, nor where an error's message cuts what it quotes."""
    nodes = list(ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))))
    errors = [part for node in nodes if isinstance(node, ast.Raise) for part in ast.walk(node)]
    ends = {part.upper for part in errors if isinstance(part, ast.Slice)}
    for index, node in enumerate(nodes):
        if (kind := kind_of(node)) and node not in ends:
            yield Mutant(file, node.lineno, kind, index)
        if isinstance(node, ast.FunctionDef | ast.For | ast.With | ast.If):
            for position, statement in enumerate(node.body):
                is_text = isinstance(getattr(statement, "value", None), ast.Constant) and type(statement) is ast.Expr
                if isinstance(statement, REMOVABLE) and not is_text:
                    yield Mutant(file, statement.lineno, "statement", index, position)


def mirror_tests(file: str) -> list[str]:
    """The test files that mirror a source file."""
    path = Path(file)
    folder = ROOT / "tests" / path.parent.relative_to("omnifusion_hf")
    names = [f"test_{path.stem}.py", f"test_{path.stem.removesuffix('_omnifusion')}.py"]
    return [str(folder / name) for name in dict.fromkeys(names) if (folder / name).is_file()]


def passes(package: Path, file: str, source: str, tests: list[str]) -> bool:
    """Whether tests pass on a copy of the package with this source of a file."""
    target = package / Path(file).relative_to("omnifusion_hf")
    original = target.read_bytes()
    target.write_text(source, encoding="utf-8")
    # -P: without it the clone's own package, in the current folder, would be imported.
    command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    paths = {"PYTHONPATH": f"{package.parent}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=os.environ | paths, capture_output=True, timeout=TIME_LIMIT)
        return done.returncode == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        target.write_bytes(original)


def run(mutants: list[Mutant], log: Path) -> dict[str, bool]:
    """Whether each mutant survived; results are added to `log`, and taken from there."""
    found = dict(json.loads(line) for line in log.read_text().splitlines()) if log.is_file() else {}
    with tempfile.TemporaryDirectory() as folder, open(log, "a", encoding="utf-8") as lines:
        package = Path(shutil.copytree(ROOT / "omnifusion_hf", Path(folder) / "omnifusion_hf"))
        for number, mutant in enumerate(mutants, start=1):
            unchanged = f"{mutant.file}:unchanged"
            for key in (unchanged, mutant.key):
                if key not in found:
                    source = ast.unparse(ast.parse((ROOT / mutant.file).read_text(encoding="utf-8")))
                    changed = (package, mutant.file, source if key == unchanged else mutant.source())
                    mirror = mirror_tests(mutant.file)
                    found[key] = passes(*changed, mirror)
                    if found[key] and key != unchanged:
                        found[key] = passes(*changed, [str(Path(mirror[0]).parent)])
                    print(json.dumps([key, found[key]]), file=lines, flush=True)
            if not found[unchanged]:
                raise SystemExit(f"the tests of {mutant.file} fail without a change; remove its line from {log}.")
            outcome = "SURVIVED" if found[mutant.key] else "found"
            print(f"{number} of {len(mutants)}: {mutant.key} {outcome}", flush=True)
    return found


def main(
    files: Annotated[list[str] | None, typer.Argument(help="By default those of model/ and training/.")] = None,
    count: Annotated[int, typer.Option(help="Size of the sample.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    output: Annotated[Path, typer.Option(help="Results, one JSON list a line.")] = ROOT / ".mutants.jsonl",
):
    """Change places of source files, and run the files' mirror tests."""
    files = files or sorted(str(p.relative_to(ROOT)) for f in FOLDERS for p in (ROOT / f).glob("*.py"))
    for file in (file for file in files if not mirror_tests(file)):
        print(f"{file} has no mirror test")
    mutants = [mutant for file in files if mirror_tests(file) for mutant in mutants_of(file)]
    sample = random.Random(seed).sample(mutants, min(count, len(mutants)))
    found = run(sample, output)
    survivors = [mutant.key for mutant in sample if found[mutant.key]]
    print("\n".join(["", "survived:", *survivors]))
    print(f"{len(survivors)} of {len(sample)} survived ({len(survivors) / max(len(sample), 1):.0%})")


if __name__ == "__main__":
    typer.run(main)
