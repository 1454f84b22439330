"""The package uses no private name of another library: none that starts with an underscore and is not on this list."""

import ast
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[1] / "omnifusion_hf"
# Attributes that transformers reads from a model class or processor; documented for whoever writes one.
CONTRACT = {"_get_num_multimodal_tokens"}  # serving engines call it
CONTRACT |= {"_can_compile_fullgraph", "_init_weights", "_keep_in_fp32_modules", "_keys_to_ignore_on_load_unexpected"}
CONTRACT |= {"_no_split_modules", "_preprocess", "_skip_keys_device_placement", "_supports_attention_backend"}
CONTRACT |= {"_exit"}  # of Python's os, documented
CONTRACT |= {"_supports_flash_attn", "_supports_flex_attn", "_supports_sdpa", "_tied_weights_keys", "_tp_plan"}
# Read-only uses without a public way, with the reason.
NO_PUBLIC_WAY = {
    "_attn_implementation": "the only place of the chosen attention; documented for models of vLLM's backend",
    "_forward_hooks": "torch has no other list of a module's hooks",
    "_forward_pre_hooks": "torch has no other list of a module's hooks",
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__")) and name != "_"


def defined(trees: list[ast.AST]) -> set[str]:
    """Names that our own files define: functions, classes, variables, attributes of `self`, arguments."""
    names = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(ast.Name("self"), name, ast.Store()):
                names.add(name)
    return names


def private_names(tree: ast.AST, own: set[str]) -> set[str]:
    """Private attributes, imports and arguments in a file that are not ours."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                found.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                modules = [alias.name for alias in names] + [getattr(node, "module", None) or ""]
                found |= {part for module in modules for part in module.split(".")}
    return {name for name in found if is_private(name)} - own - CONTRACT - set(NO_PUBLIC_WAY) - {"_compat"}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "_compat.py")
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
OWN = defined(list(TREES.values()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_private_name_of_another_library_is_used(path):
    assert private_names(TREES[path], OWN) == set()


def test_every_exception_is_used_and_others_are_found():
    used = {node.attr for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not {*CONTRACT, *NO_PUBLIC_WAY} - used - OWN
    for code in ("model._secret", "import a._b", "from a._b import c", "from a import _b", "f(_raise=1)"):
        assert private_names(ast.parse(code), OWN)
    assert not private_names(ast.parse("model.public; __all__; self._init_weights; _"), OWN)
