"""A saved folder is enough: it loads with trust_remote_code=True without this package and without a network."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import tiny


SCRIPT = """
import importlib.util, json, socket, sys

def refuse(*args, **kwargs):
    raise RuntimeError("the network was used")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse

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
greedy = {"return_full_text": False, "generate_kwargs": {"max_new_tokens": 6, "do_sample": False}}
report["pipeline"] = answer(text=[{"role": "user", "content": content}], **greedy)[0]["generated_text"]
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


def test_where_it_is_trusted_remote_code_answers_as_the_package_and_is_saved_again(
    model, processor, model_folder, tmp_path
):
    shutil.copytree(model_folder, tmp_path / "checkpoint")  # far from this source tree
    tiny.image().save(tmp_path / "image.png")
    python = environment_without_this_package(tmp_path / "venv")
    environment = {name: value for name, value in os.environ.items() if not re.match("PYTHON|HF_|TRANSFORMERS_", name)}
    command = [python, "-I", "-c", SCRIPT, tmp_path / "checkpoint", tmp_path / "image.png"]
    options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "cwd": tmp_path}
    run = subprocess.run(command, env=environment | {"HF_HOME": str(tmp_path / "hf")}, **options)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    classes = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForImageTextToText": "ForConditionalGeneration"}
    classes["AutoProcessor"] = "Processor"
    found = {auto: ["transformers_modules", f"OmniFusion{name}"] for auto, name in classes.items()}
    assert not report["installed"] and report["classes"] == found
    assert report["refused"] == [True] * 4 and report["saved_again"] == sorted(classes)
    inputs, other = (tiny.prompt(processor, [tiny.user(tiny.image(seed), "What?")]) for seed in range(2))
    options = {"max_new_tokens": 6, "do_sample": False}
    assert report["ids"] == model.generate(**inputs, **options)[0].tolist()
    assert report["ids"] != model.generate(**other, **options)[0].tolist()  # control
    answer = report["ids"][inputs.input_ids.shape[1] :]
    assert report["pipeline"].strip() == processor.decode(answer, skip_special_tokens=True) != ""
