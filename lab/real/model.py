"""The models of real parts: assembled, trained by both recipes, asked all test questions, and shipped as LoRA weights
without their parts."""

import json
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from shutil import copy2, copytree, ignore_patterns, rmtree

import torch
from safetensors.torch import load_file, save_file

from omnifusion_hf.cli import main
from omnifusion_hf.hub import write_card
from omnifusion_hf.io import SUMMARY, staged_folder, write_whole

from . import easy_vqa, emoji, encoder, llm
from .packages import REAL


RECIPES = Path(__file__).parent / "recipes"
SHIPPED = Path(__file__).parent / "weights"
MODEL = REAL / "model"  # of these weights
ON_A_GPU = "bf16=true", "dataloader_num_workers=4"
LORA = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Variant:
    """`things`: whether it learns emoji beside easy-VQA. `layer`: what the adapter reads, if not all: the upper layers
    were tuned for saliency."""

    projector: str
    layer: int | None = None
    things: bool = False


VARIANTS = {"mlp": Variant("mlp", 9), "summation": Variant("summation"), "both": Variant("mlp", 9, things=True)}
QUESTIONS = {  # the files of questions of each benchmark
    "easy_vqa": ("test", "swapped"),
    "emoji": ("names", "names_swapped", "categories", "categories_swapped"),
}
THINGS = {  # settings of the stages of a model that learns things too, for a GPU
    "stage1": ("max_steps=120", "per_device_train_batch_size=96"),
    "stage2": ("max_steps=1053", "per_device_train_batch_size=96", "learning_rate=7e-4"),
}


def omnifusion(*words):
    """Runs a command of the package; stops after its message if it fails."""
    if code := main(list(map(str, words))):
        raise SystemExit(code)


def images_of(benchmark: str) -> Path:
    return easy_vqa.source() if benchmark == "easy_vqa" else emoji.FOLDER


def assembled(name: str) -> Path:
    folder, variant = REAL / name / "assembled", VARIANTS[name]
    if not folder.exists():
        parts = "--vision", f"dinov2-s={encoder.convert()}", "--text", llm.convert()
        settings = "--projector", variant.projector, "--image-size", 112, "--chat-template", "own"
        layer = () if variant.layer is None else ("--layer", variant.layer)
        omnifusion("build", *parts, *settings, *layer, "-o", folder)
    return folder


def data_of(stage: str, things: bool) -> list[str]:
    """The settings of a stage's data. Emoji have names and categories in both stages."""
    path, images = easy_vqa.write() / f"{stage}.json", easy_vqa.source()
    if not things:
        return [f"data_path={path}", f"image_folder={images}"]
    sources = [
        {"path": str(path), "image_folder": str(images)},
        {"path": str(emoji.write() / "train.json"), "image_folder": str(emoji.FOLDER)},
    ]
    path = REAL / f"{stage}_and_things.yaml"
    write_whole(path, json.dumps({"sources": sources}))  # JSON is YAML
    return [f"data_path={path}"]


def train(name: str) -> Path:
    """The folder of stage 2, a LoRA run. Each stage continues where it was interrupted."""
    start = assembled(name)
    for stage in ("stage1", "stage2"):
        folder = REAL / name / stage
        if not (folder / SUMMARY).exists():
            things = VARIANTS[name].things
            data, settings = data_of(stage, things), THINGS[stage] if things else ()
            folders = f"output_dir={folder}", f"cache_vision_features={REAL / name / 'features'}"
            settings += ON_A_GPU if torch.cuda.is_available() else ()
            omnifusion("train", RECIPES / f"{stage}.yaml", f"model_name_or_path={start}", *data, *folders, *settings)
        start = folder
    return start


def merged(lora: Path, base: Path, model: Path) -> Path:
    """The whole model; made anew, without the answers of the old one, if the LoRA weights are newer."""
    if model.exists() and model.stat().st_mtime < (lora / LORA[1]).stat().st_mtime:
        rmtree(model)
    if not model.exists():
        rmtree(model.parent / "answers", ignore_errors=True)
        omnifusion("merge", lora, "--base", base, "-o", model)
    return model


def measure(name: str) -> list[Path]:
    """Answers all test questions, those of easy-VQA also with other images, and prints the accuracies."""
    model, files = merged(train(name), assembled(name), REAL / name / "model"), []
    for benchmark in ["easy_vqa"] + ["emoji"] * VARIANTS[name].things:
        for questions in QUESTIONS[benchmark]:
            files.append(REAL / name / "answers" / f"{questions}.jsonl")
            data = "--data", REAL / benchmark / f"{questions}.json", "--image-folder", images_of(benchmark)
            if not files[-1].exists():
                omnifusion("ask", "--model", model, *data, "--max-new-tokens", 24, "-o", files[-1])
    omnifusion("report", *files, "-o", REAL / name / "report")
    for file in files:
        if "swapped" not in file.stem:
            omnifusion("card", model, "--results", file)
    return files


def export(name: str):
    """Writes the trained weights alone, in half precision, and the card of the measured model to the repository."""
    folder, card = train(name), REAL / name / "model" / "README.md"
    with staged_folder(SHIPPED) as part:
        config = json.loads((folder / LORA[0]).read_text(encoding="utf-8")) | {"base_model_name_or_path": name}
        (part / LORA[0]).write_text(json.dumps(config, indent=2), encoding="utf-8")
        weights = {key: weight.half() for key, weight in load_file(folder / LORA[1]).items()}
        save_file(weights, part / LORA[1], metadata={"format": "pt"})
        if card.is_file():
            copy2(card, part)
            write_card(part, {}, relpath(MODEL))  # its usage code names the folder that demo makes


def shipped() -> Path:
    """The whole model: the shipped weights added to the parts of the packages."""
    base = assembled(json.loads((SHIPPED / LORA[0]).read_text(encoding="utf-8"))["base_model_name_or_path"])
    with staged_folder(REAL / "lora") as part:
        copytree(base, part, dirs_exist_ok=True, ignore=ignore_patterns("config.json", "*.safetensors"))
        for file in LORA:
            copy2(SHIPPED / file, part)  # with its time
    return merged(REAL / "lora", base, MODEL)


def demo():
    """Asks the shipped model the questions of five test images."""
    model, questions = shipped(), json.loads((easy_vqa.write() / "test.json").read_text(encoding="utf-8"))
    for question in questions[::2000]:
        text, answer = (said["value"].removeprefix("<image>\n") for said in question["conversations"])
        print(f"{question['image']}: {text} (right: {answer})", flush=True)
        omnifusion("ask", easy_vqa.source() / question["image"], text, "--model", model)
    print(f"chat with it: omnifusion demo --model {model}")
