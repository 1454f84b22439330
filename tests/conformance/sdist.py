"""Obtains transformers' common tests: the `tests` folder of the source distribution of the installed version.

They stay in a cache outside the repository, `~/.cache/omnifusion_hf/hf_tests/<version>`; none of their text is ours.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers


CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "omnifusion_hf" / "hf_tests"


class NoSourceDistribution(RuntimeError):
    """The package index cannot be reached or has no source distribution of this version."""


def common_tests() -> Path:
    """The folder that holds `tests/test_modeling_common.py` and its siblings, downloaded on first use.

    Raises `NoSourceDistribution` where pip cannot download it.
    """
    folder = CACHE / transformers.__version__
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    wanted = f"transformers=={transformers.__version__}"
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        words = [
            sys.executable,
            "-m",
            "pip",
            "download",
            wanted,
            "--no-binary",
            "transformers",
            "--no-deps",
            "--quiet",
        ]
        pip = subprocess.run([*words, "--dest", scratch], capture_output=True, text=True)
        archives = list(Path(scratch).glob("transformers-*.tar.gz"))
        if pip.returncode or not archives:
            raise NoSourceDistribution(f"`pip download {wanted}` failed: {pip.stderr.strip()[-500:]}")
        with tarfile.open(archives[0]) as tar:
            tar.extractall(scratch, filter="data")
        whole = Path(scratch, archives[0].name.removesuffix(".tar.gz"))
        shutil.rmtree(whole / "src")  # a second copy of the library must not be importable
        try:
            whole.rename(folder)  # atomic; a folder under its final name is whole
        except OSError:
            if not folder.exists():  # another process may have been first
                raise
    return folder
