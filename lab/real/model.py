"""The model of real parts: assembled, trained by both recipes, asked the whole test split, and shipped as LoRA weights
without their parts."""

import json
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

from safetensors.torch import load_file, save_file

from omnifusion_hf.cli import main
from omnifusion_hf.io import SUMMARY, staged_folder

from . import easy_vqa, encoder, llm
from .packages import REAL


RECIPES = Path(__file__).parent / "recipes"
SHIPPED = Path(__file__).parent / "weights"  # of `mlp`
LORA = "adapter_config.json", "adapter_model.safetensors"
LAYERS = {"mlp": ("--layer", 9)}  # the upper layers were tuned for saliency; summation reads all


def omnifusion(*words):
    """Runs a command of the package; stops after its message if it fails."""
    if code := main(list(map(str, words))):
        raise SystemExit(code)


def assembled(projector: str) -> Path:
    folder = REAL / projector / "assembled"
    if not folder.exists():
        parts = "--vision", f"dinov2-s={encoder.convert()}", "--text", llm.convert()
        settings = "--projector", projector, "--image-size", 112, "--chat-template", "own"
        omnifusion("build", *parts, *settings, *LAYERS.get(projector, ()), "-o", folder)
    return folder


def train(projector: str) -> Path:
    """The folder of stage 2, a LoRA run. Each stage continues where it was interrupted."""
    start, data = assembled(projector), easy_vqa.write()
    for stage in ("stage1", "stage2"):
        folder = REAL / projector / stage
        if not (folder / SUMMARY).exists():
            files = f"data_path={data / f'{stage}.json'}", f"image_folder={easy_vqa.source()}"
            folders = f"output_dir={folder}", f"cache_vision_features={REAL / projector / 'features'}"
            omnifusion("train", RECIPES / f"{stage}.yaml", f"model_name_or_path={start}", *files, *folders)
        start = folder
    return start


def measure(projector: str) -> Path:
    """Answers all questions of the test split, and all with another image of it, and prints the accuracies."""
    trained, model = train(projector), REAL / projector / "model"
    if not model.exists():
        omnifusion("merge", trained, "-o", model)
    files = [REAL / projector / f"{name}.jsonl" for name in ("test", "swapped")]
    for file in files:
        data = "--data", easy_vqa.write() / f"{file.stem}.json", "--image-folder", easy_vqa.source()
        omnifusion("ask", "--model", model, *data, "--max-new-tokens", 6, "-o", file)
    omnifusion("report", *files, "-o", REAL / projector / "report")
    return files[0]


def export(projector: str = "mlp"):
    """Writes the trained weights alone, in half precision, to the repository."""
    folder = train(projector)
    with staged_folder(SHIPPED) as part:
        config = json.loads((folder / LORA[0]).read_text(encoding="utf-8")) | {"base_model_name_or_path": "assembled"}
        (part / LORA[0]).write_text(json.dumps(config, indent=2), encoding="utf-8")
        weights = {name: weight.half() for name, weight in load_file(folder / LORA[1]).items()}
        save_file(weights, part / LORA[1], metadata={"format": "pt"})


def shipped() -> Path:
    """The whole model: the shipped weights added to the parts of the packages."""
    model = REAL / "model"
    if not model.exists():
        base = assembled("mlp")
        with staged_folder(REAL / "lora") as part:
            copytree(base, part, dirs_exist_ok=True, ignore=ignore_patterns("config.json", "*.safetensors"))
            for name in LORA:
                copy(SHIPPED / name, part)
        omnifusion("merge", REAL / "lora", "--base", base, "-o", model)
    return model


def demo():
    """Asks the shipped model the questions of five test images."""
    model, questions = shipped(), json.loads((easy_vqa.write() / "test.json").read_text(encoding="utf-8"))
    for question in questions[::2000]:
        text, answer = (said["value"].removeprefix("<image>\n") for said in question["conversations"])
        print(f"{question['image']}: {text} (right: {answer})", flush=True)
        omnifusion("ask", easy_vqa.source() / question["image"], text, "--model", model)
    print(f"chat with it: omnifusion demo --model {model}")
