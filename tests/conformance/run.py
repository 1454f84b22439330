"""Runs one set-up's common tests in a process of its own: they change transformers' tables and module names.

By hand: `cd tests && python -m conformance.run clip_mlp_mistral [-k EXPRESSION …]`.
"""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple


HERE = Path(__file__).parent
TWO = {"encoders": ("clip", "dinov2"), "encoder_sizes": (32, 48)}
SETUPS = {  # name -> arguments of tiny.config()
    "clip_mlp_mistral": {"encoders": ("clip",), "projector_type": "mlp"},
    "siglip_transformer_llama": {"encoders": ("siglip",), "projector_type": "transformer", "text": "llama"},
    "clip_dinov2_grid": {**TWO, "image_sizes": [32, 32]},  # and several views per image
    "clip_dinov2_summation": {**TWO, "projector_type": "summation"},  # of all layers
    "siglip_internvl_attention": {"encoders": ("siglip", "internvl"), "projector_type": "attention", "text": "llama"},
}
SETUPS["siglip_internvl_attention"] |= {"projector_num_queries": 20}
REFERENCE = "llava"


class Outcome(NamedTuple):
    """status: "passed", "failed" or "skipped". message: why, for the last two."""

    status: str
    message: str = ""


def environment(setup: str = "clip_mlp_mistral") -> dict[str, str]:
    """The same on every machine: no network, no accelerator, one thread (several are slower on models this small)."""
    paths = [str(HERE.parent), str(HERE.parent / "helpers"), str(HERE.parents[1])]  # `tiny` and the package
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | fixed | {"PYTHONPATH": os.pathsep.join(paths), "OMNIFUSION_SETUP": setup}


def run(setup: str) -> dict[str, Outcome]:
    """Outcome per test, named `ModelTest.test_save_load`."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        words = [*command(setup), f"--junitxml={report}"]
        process = subprocess.run(words, env=environment(setup), capture_output=True, text=True)
        if not report.exists():
            raise RuntimeError(f"The common tests of {setup} did not run:\n{process.stdout}\n{process.stderr}")
        return dict(_outcome(case) for case in ElementTree.parse(report).iter("testcase"))


def command(setup: str) -> list[str]:
    file = HERE / ("omnifusion.py" if setup in SETUPS else f"{setup}.py")
    return [sys.executable, "-m", "pytest", "-c", str(HERE / "pytest.ini"), str(file)]


def _outcome(case: ElementTree.Element) -> tuple[str, Outcome]:
    name = f"{case.get('classname').rsplit('.')[-1]}.{case.get('name')}"
    found = {child.tag: f"{child.get('message')}\n{child.text}" for child in case}
    for tag in ("failure", "error"):
        if tag in found:
            return name, Outcome("failed", found[tag])
    if "skipped" in found:
        return name, Outcome("skipped", found["skipped"])
    return name, Outcome("passed")


if __name__ == "__main__":
    sys.exit(subprocess.run([*command(sys.argv[1]), *sys.argv[2:]], env=environment(sys.argv[1])).returncode)
