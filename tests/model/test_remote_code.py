"""A saved folder is enough: it loads with trust_remote_code=True where this package is not installed."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import tiny


SCRIPT = """
import importlib.util, json, sys

from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

folder, image = sys.argv[1:]
report = {"installed": importlib.util.find_spec("omnifusion_hf") is not None, "refused": [], "classes": {}}
loaded = {}
for auto in (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor):
    try:
        auto.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        report["refused"].append("trust_remote_code" in str(error))
    loaded[auto.__name__] = auto.from_pretrained(folder, trust_remote_code=True)
    cls = type(loaded[auto.__name__])
    report["classes"][auto.__name__] = [cls.__module__.split(".")[0], cls.__name__]
processor, model = loaded["AutoProcessor"], loaded["AutoModelForImageTextToText"]
content = [{"type": "image", "image": Image.open(image)}, {"type": "text", "text": "What?"}]
options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
report["ids"] = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()
answer = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
greedy = {"max_new_tokens": 6, "do_sample": False}
report["pipeline"] = answer(
    text=[{"role": "user", "content": content}], return_full_text=False, generate_kwargs=greedy
)[0]["generated_text"]
model.save_pretrained(sys.argv[1] + "_again")
report["saved_again"] = sorted(json.load(open(sys.argv[1] + "_again/config.json"))["auto_map"])
print(json.dumps(report))
"""


def environment_without_this_package(folder: Path) -> Path:
    """The interpreter of a virtual environment that has every installed package but ours.

    Lines of a .pth file add folders and do not read the .pth files in them, by which an editable package is found.
    """
    venv.create(folder, symlinks=True)
    bare = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    installed = [path for path in sys.path if path.endswith("-packages")]
    (bare / "installed.pth").write_text("\n".join(installed), encoding="utf-8")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def report(model, processor, tmp_path_factory) -> dict:
    """What the script found in that environment, far from this source tree."""
    home = tmp_path_factory.mktemp("elsewhere")
    model.save_pretrained(home / "checkpoint")
    processor.save_pretrained(home / "checkpoint")
    tiny.image().save(home / "image.png")
    python = environment_without_this_package(home / "venv")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [python, "-I", "-c", SCRIPT, home / "checkpoint", home / "image.png"],
        env=environment, cwd=home, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_the_package_is_absent_and_remote_code_is_used(report):
    assert not report["installed"]
    assert report["classes"] == {
        "AutoConfig": ["transformers_modules", "OmniFusionConfig"],
        "AutoModel": ["transformers_modules", "OmniFusionModel"],
        "AutoModelForImageTextToText": ["transformers_modules", "OmniFusionForConditionalGeneration"],
        "AutoProcessor": ["transformers_modules", "OmniFusionProcessor"],
    }


def test_remote_code_gives_the_same_ids_as_the_package(report, model, processor):
    inputs = tiny.prompt(processor, [tiny.user(tiny.image(), "What?")])
    assert report["ids"] == model.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()
    other = tiny.prompt(processor, [tiny.user(tiny.image(1), "What?")])
    assert report["ids"] != model.generate(**other, max_new_tokens=6, do_sample=False)[0].tolist()


def test_the_pipeline_answers_from_remote_code(report, model, processor):
    inputs = tiny.prompt(processor, [tiny.user(tiny.image(), "What?")])
    answer = report["ids"][inputs.input_ids.shape[1] :]
    assert report["pipeline"].strip() == processor.decode(answer, skip_special_tokens=True) != ""


def test_without_trust_every_class_is_refused(report):
    assert report["refused"] == [True] * 4


def test_a_folder_saved_from_remote_code_names_every_class_again(report):
    assert report["saved_again"] == ["AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor"]
