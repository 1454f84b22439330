"""The wheel alone is enough: recipes and converters work in an empty folder, without a clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import conversations
import pytest
from pages import ROOT
from release import write_release, write_vision_tower


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The unpacked wheel, built from a copy of the files that a build takes."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("omnifusion_hf", "conversion"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", source]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, source], check=True)
    (wheel,) = source.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    """The command in `folder`, with nothing of ours but the wheel."""
    environment = os.environ | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    code = "import sys, omnifusion_hf.cli as cli; assert cli.__file__.startswith(sys.argv[1]); "
    code += "assert cli.converters.__name__ == 'omnifusion_hf.conversion.command_line'; "
    code += "sys.exit(cli.main(sys.argv[2:]))"
    command = [sys.executable, "-c", code, str(installed), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_everything_that_is_installed_is_in_the_wheel(installed):
    names = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert {name for name in names if not name.startswith(("omnifusion_hf/", "omnifusion_hf-"))} == set()
    places = {ROOT / "omnifusion_hf": "omnifusion_hf", ROOT / "conversion": "omnifusion_hf/conversion"}
    for folder, place in places.items():
        files = {f"{place}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*") if path.is_file()}
        missing = {name for name in files - names if "__pycache__" not in name}
        assert all(name.startswith("omnifusion_hf/serving/space/") for name in missing), missing


def test_a_recipe_is_listed_and_trained_by_name(installed, tmp_path):
    assert "finetune, finetune_grid," in " ".join(run(installed, tmp_path, "train", "--help").stdout.split())
    base = conversations.write_model(tmp_path / "base")
    samples = conversations.write(tmp_path, [conversations.sample(index) for index in range(4)])
    settings = [f"model_name_or_path={base}", f"data_path={samples}", "output_dir=out", "max_steps=1", "use_cpu=true"]
    settings += ["bf16=false", "report_to=none", "dataloader_num_workers=0"]
    (tmp_path / "empty").mkdir()
    done = run(installed, tmp_path / "empty", "train", "pretrain", *settings)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "empty/out/training_summary.json").is_file()
    done = run(installed, tmp_path / "empty", "train", "pretrain", settings[0], *settings[2:])  # the recipe's mixture
    assert done.returncode == 2 and "data/share-captioner_coco_lcs_sam_1246k_1107.json" in done.stderr


def test_the_release_is_converted(installed, tmp_path):
    release, tower = write_release(tmp_path / "release"), write_vision_tower(tmp_path / "tower")
    words = ["convert", "v1.1", "--source", str(release), "--vision", str(tower), "--output", "model"]
    done = run(installed, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model/README.md").is_file() and done.stdout == "wrote model\n"
