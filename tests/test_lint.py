"""ruff and transformers' linter of modelling files find nothing; exceptions are listed in conformance/SKIPS.md."""

import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


def lint(*command, folder=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True)


MLINTER = ("mlinter", "--no-progress", "--no-cache")


@pytest.mark.parametrize("command", [("ruff", "check", "--no-cache", "."), (*MLINTER, "omnifusion_hf")])
def test_a_linter_finds_nothing(command):
    result = lint(*command)
    assert result.returncode == 0, result.stdout + result.stderr


def test_control_mlinter_reports_a_file_without_licence(tmp_path):
    name = "configuration_omnifusion.py"
    code = (ROOT / "omnifusion_hf/model" / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(code.replace("Licensed under", ""), encoding="utf-8")
    result = lint(*MLINTER, ".", folder=tmp_path)
    assert result.returncode == 1 and "TRF028" in result.stderr
