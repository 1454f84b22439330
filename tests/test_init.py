"""`import omnifusion_hf` is cheap and registers the classes with the Auto classes, in any order of imports."""

import subprocess
import sys
from pathlib import Path

import pytest

import omnifusion_hf


TINY = Path(omnifusion_hf.__file__).parent / "tiny"
LOAD = f"assert type(transformers.AutoModelForImageTextToText.from_pretrained({str(TINY)!r})).__module__"
LOAD += " == 'omnifusion_hf.model.modeling_omnifusion'"


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_package_imports_neither_transformers_nor_torch():
    code = "import sys, omnifusion_hf; assert not {'transformers', 'torch'} & sys.modules.keys()"
    assert (done := run(code)).returncode == 0, done.stderr
    assert run(code.replace("omnifusion_hf;", "omnifusion_hf; omnifusion_hf.OmniFusionConfig;")).returncode  # control


@pytest.mark.parametrize(
    "imports",
    [
        "import omnifusion_hf, transformers",
        "import transformers, omnifusion_hf",
        "import importlib.util, omnifusion_hf; importlib.util.find_spec('transformers'); import transformers",
        "from omnifusion_hf import OmniFusionConfig; import transformers",
        "from omnifusion_hf.model.views_omnifusion import ImageViews; import transformers",
        "import omnifusion_hf.auto, transformers",
        "import omnifusion_hf.inference, transformers",
    ],
)
def test_the_auto_classes_know_the_model_after(imports):
    assert (done := run(f"{imports}; {LOAD}")).returncode == 0, done.stderr


def test_control_without_the_package_they_do_not():
    assert "omnifusion" in run(f"import transformers; {LOAD}").stderr


def test_every_public_name_is_there_and_no_other():
    for name in omnifusion_hf.__all__:
        assert getattr(omnifusion_hf, name).__name__
    assert set(omnifusion_hf.__all__) <= set(dir(omnifusion_hf))
    with pytest.raises(AttributeError, match="no attribute 'OmniFusion'"):
        omnifusion_hf.OmniFusion  # noqa: B018
