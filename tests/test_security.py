"""No foreign code runs: one module reads pickles, and only the user decides to trust remote code."""

import ast
import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from omnifusion_hf import OmniFusionForConditionalGeneration, OmniFusionProcessor


ROOT = Path(__file__).parent.parent
PATTERNS = ("omnifusion_hf/**/*.py", "conversion/**/*.py", "lab/*.py", "benchmarks/*.py", "setup.py")
SOURCES = [path for pattern in PATTERNS for path in ROOT.glob(pattern)]
READERS = {"load", "loads", "Unpickler", "read_pickle"}
PICKLES = {"torch", "pickle", "joblib", "dill", "cloudpickle", "pandas", "pd"}


def calls(source: str) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]


def reads_pickles(call: ast.Call) -> bool:
    if any(keyword.arg == "allow_pickle" for keyword in call.keywords):
        return True
    owner, _, name = ast.unparse(call.func).rpartition(".")
    return owner in PICKLES and name in READERS


def trusts(source: str) -> bool:
    """Whether the source has `trust_remote_code=True` as an argument or in a dictionary; strings do not count."""
    tree = ast.parse(source)
    pairs = [(node.arg, node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            pairs += [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values)]
    return any(name == "trust_remote_code" and getattr(value, "value", None) is True for name, value in pairs)


def test_only_one_module_reads_pickles_and_only_weights():
    found = {path: [call for call in calls(path.read_text("utf-8")) if reads_pickles(call)] for path in SOURCES}
    readers = {path.relative_to(ROOT).as_posix(): calls for path, calls in found.items() if calls}
    assert list(readers) == ["conversion/pickles.py"]
    for call in readers["conversion/pickles.py"]:
        assert any(keyword.arg == "weights_only" and keyword.value.value is True for keyword in call.keywords)
    for source in ("torch.load(x)", "pickle.loads(x)", "pickle.Unpickler(x).load()", "np.load(x, allow_pickle=True)"):
        assert any(map(reads_pickles, calls(source))) and not any(map(reads_pickles, calls("json.load(x)")))  # control


def test_no_source_trusts_remote_code_for_the_user():
    assert len(SOURCES) > 50
    assert [path for path in SOURCES if trusts(path.read_text("utf-8"))] == []
    assert trusts("f(trust_remote_code=True)") and trusts("f(**{'trust_remote_code': True})")  # control
    assert not trusts("f(trust_remote_code=flag)  # not trust_remote_code=True")


CODE = """
from pathlib import Path
from transformers import PreTrainedConfig
Path({marker!r}).touch()
class EvilConfig(PreTrainedConfig):
    model_type = "evil"
"""
REMOTE = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}}


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """The file that appears when foreign code runs. Prompts of transformers are answered with no."""
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    return tmp_path / "marker"


@pytest.fixture
def evil(tmp_path, marker) -> Path:
    """The folder of a model with code of its own."""
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
    (folder / "config.json").write_text(json.dumps(REMOTE))
    return folder


@pytest.mark.parametrize("part", ["LLM", "encoder"])
@pytest.mark.parametrize("trust", [None, False], ids=["not asked", "no trust"])
def test_a_part_with_code_of_its_own_is_refused_in_a_saved_folder(part, trust, evil, marker, model_folder):
    """The configuration of a part names code that lies in the folder."""
    config = json.loads((model_folder / "config.json").read_text("utf-8"))
    config["text_config"].update(REMOTE if part == "LLM" else {})
    config["vision_config"]["encoder_configs"][0].update(REMOTE if part == "encoder" else {})
    (evil / "config.json").write_text(json.dumps(config))
    for auto in (AutoConfig, AutoModelForImageTextToText, AutoProcessor):
        with pytest.raises(ValueError, match="evil"):
            auto.from_pretrained(evil, **({} if trust is None else {"trust_remote_code": trust}))
    assert not marker.exists()
    (evil / "config.json").write_text(json.dumps(REMOTE))
    AutoConfig.from_pretrained(evil, trust_remote_code=True)
    assert marker.exists()  # control: trusted code runs


def test_a_known_part_never_runs_the_code_that_its_configuration_names(evil, marker, model_folder, tmp_path):
    """Neither do the folder's own `auto_map` and its files, where the package is installed."""
    config = json.loads((model_folder / "config.json").read_text("utf-8"))
    config["text_config"]["auto_map"] = REMOTE["auto_map"]
    for file in model_folder.iterdir():
        (evil / file.name).write_bytes(file.read_bytes())
    (evil / "config.json").write_text(json.dumps(config))
    (evil / "modeling_omnifusion.py").write_text(CODE.format(marker=str(marker)))
    model = AutoModelForImageTextToText.from_pretrained(evil, trust_remote_code=False)
    assert type(model) is OmniFusionForConditionalGeneration and not marker.exists()


@pytest.mark.parametrize("part", ["vision", "text"])
def test_models_are_not_assembled_from_parts_with_code_of_their_own(part, evil, marker, parts):
    chosen = {"vision": [str(parts / "clip")], "text": str(parts / "llm")}
    chosen |= {"vision": [str(evil)]} if part == "vision" else {"text": str(evil)}
    for cls in (OmniFusionForConditionalGeneration, OmniFusionProcessor):
        with pytest.raises(ValueError):
            cls.from_vision_text_pretrained(**chosen)
    assert not marker.exists()
