"""Adapters and encoders in files outside the package: known by name, saved with a model, loaded without it."""

import os
import subprocess
import sys
from pathlib import Path

import conversations
import pages
import pytest
import tiny

from omnifusion_hf.extensions import as_remote_code, import_extensions
from omnifusion_hf.model.modeling_omnifusion_projector import extensions_of


GENERATE = """
import sys
{first}
import torch
from transformers import AutoModelForImageTextToText

folder, trusted = sys.argv[1], len(sys.argv) > 2
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=trusted)
torch.manual_seed(0)  # only now: what is loaded must not be random
ids = torch.tensor([[1, *[model.config.image_token_id] * model.config.image_seq_length, 5]])
pixels = torch.rand(1, 3, *[model.config.vision_config.image_size] * 2)
labels = ids.masked_fill(ids == model.config.image_token_id, -100)
model.train()(input_ids=ids, pixel_values=pixels, labels=labels).loss.backward()
assert all(weight.grad is not None for weight in model.model.multi_modal_projector.parameters())
print(type(model).__module__.split(".")[0])
print(model.eval().generate(ids, pixel_values=pixels, max_new_tokens=4, do_sample=False).tolist())
model.save_pretrained("again")
model = AutoModelForImageTextToText.from_pretrained("again", trust_remote_code=trusted)
print(model.generate(ids, pixel_values=pixels, max_new_tokens=4, do_sample=False).tolist())
"""
WITH, WITHOUT = "import omnifusion_hf", "sys.modules['omnifusion_hf'] = None  # as if it were not installed"


@pytest.fixture(scope="module")
def page(ran_page):
    return ran_page(pages.ROOT / "docs/extending.md")


def run(folder: Path, first: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", GENERATE.format(first=first), *arguments]
    paths = {"PYTHONPATH": str(pages.ROOT), "OMP_NUM_THREADS": "1"} if first == WITH else {"OMP_NUM_THREADS": "1"}
    environment = os.environ | paths | environment
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_page_prints_what_it_says(page):
    text = (pages.ROOT / "docs/extending.md").read_text(encoding="utf-8")
    printed = [line for block in page.printed for line in block.splitlines() if line]
    assert printed == ["{'pixel_shuffle': 9, 'perceiver': 12}", "16"] and all(f"`{line}`" in text for line in printed)


@pytest.mark.parametrize(
    "model, file",
    [("pixel_shuffle", "pixel_shuffle.py"), ("perceiver", "perceiver.py"), ("own_encoder", "patch_encoder.py")],
)
def test_a_saved_model_loads_from_the_file_and_as_remote_code_alike(model, file, page, tmp_path):
    folder = str(page.folder / model)
    installed = run(tmp_path, WITH, folder, OMNIFUSION_EXTENSIONS=str(page.folder / file))
    remote = run(tmp_path, WITHOUT, folder, "trusted", HF_HOME=str(tmp_path))
    assert installed.stdout.startswith("omnifusion_hf\n"), installed.stderr
    assert remote.stdout.startswith("transformers_modules\n"), remote.stderr
    (answer,) = {line for run in (installed, remote) for line in run.stdout.splitlines()[1:]}
    assert answer.startswith("[[1, ")


def test_commands_build_and_train_with_the_file(page, parts, tmp_path):
    data, environment = conversations.write(tmp_path, [conversations.sample(0)]), {"PYTHONPATH": str(pages.ROOT)}
    environment |= {"OMNIFUSION_EXTENSIONS": str(page.folder / "pixel_shuffle.py"), "OMP_NUM_THREADS": "1"}
    build = ["build", "--vision", parts / "clip", "--text", parts / "llm", "--projector", "pixel_shuffle"]
    train = ["train", "pretrain", f"data_path={data}", "use_cpu=true", "bf16=false", "global_batch_size=1"]
    train += ["model_name_or_path=built", "output_dir=trained", "max_steps=1", "per_device_train_batch_size=1"]
    for words in ([*build, "-o", "built"], train):
        command = [sys.executable, "-m", "omnifusion_hf.cli", *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "trained/pixel_shuffle.py").is_file()


def test_without_the_file_the_error_says_what_to_do(page, tmp_path):
    failed = run(tmp_path, WITH, str(page.folder / "perceiver")).stderr
    assert "projector_type `perceiver` is unknown" in failed and "OMNIFUSION_EXTENSIONS=FILE.py" in failed


@pytest.mark.parametrize("name, reason", [("absent.py", "is not a file"), ("json.py", "a module `json` exists")])
def test_a_file_that_cannot_be_imported_is_named(name, reason, tmp_path, monkeypatch):
    (tmp_path / "json.py").touch()
    monkeypatch.setenv("OMNIFUSION_EXTENSIONS", str(tmp_path / name))
    with pytest.raises(ValueError, match=f"{name}.*{reason}"):
        import_extensions()


def test_a_script_may_import_a_file_that_the_variable_names(page, tmp_path):
    file = page.folder / "pixel_shuffle.py"
    paths = os.pathsep.join(map(str, (pages.ROOT, page.folder)))
    environment = os.environ | {"OMNIFUSION_EXTENSIONS": str(file), "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", "import pixel_shuffle, omnifusion_hf"], env=environment, check=True)


def test_imports_of_the_package_become_imports_of_the_folder(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("from omnifusion_hf import (  # mine\n    Projector as Base,\n    register_encoder,\n)  # noqa\n")
    assert as_remote_code(file).splitlines() == [
        "from .modeling_omnifusion_projector import Projector as Base",
        "from .encoder_families_omnifusion import register_encoder",
    ]
    for line in ("import omnifusion_hf", "from omnifusion_hf.hub import push", "from omnifusion_hf import nothing"):
        file.write_text(line + "\n")
        with pytest.raises(ValueError, match="own.py is saved with the model, but"):
            as_remote_code(file)


def test_classes_of_the_package_also_as_remote_code_are_no_extensions(monkeypatch):
    model = tiny.model(tiny.config(("swin",)))
    encoder, projector = type(model.model.vision_tower.encoders[0]), type(model.model.multi_modal_projector)
    assert extensions_of(model) == set()
    for cls, file in ((encoder, "modeling_omnifusion_vision"), (projector, "modeling_omnifusion_projector")):
        monkeypatch.setattr(cls, "__module__", f"transformers_modules.checkpoint.{file}")
    assert extensions_of(model) == set()
    monkeypatch.setattr(encoder, "__module__", "own_file")  # control
    assert extensions_of(model) == {encoder}
