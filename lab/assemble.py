"""Assembles the pretrained parts, and exports the trained model as the bundled model with its images."""

import json
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from omnifusion_hf import OmniFusionForConditionalGeneration, OmniFusionProcessor
from omnifusion_hf.io import staged_folder, write_whole

from .evaluate import examples


MOST_BYTES = 10_000_000
# topic -> number of demo images; topics in which the model is weak are left out (docs/lab.md)
DEMO = {
    "colour": 2,
    "shape": 1,
    "count": 2,
    "position": 2,
    "digit": 2,
    "text, 2 characters": 1,
    "text, 3 characters": 1,
    "formula": 2,
}


def assemble(encoder: Path, llm: Path, out: Path) -> None:
    parts = {"vision": [str(encoder)], "text": str(llm), "projector_type": "mlp", "vision_feature_layer": -1}
    with staged_folder(out) as folder:
        put_together(parts, folder)


def put_together(parts: dict, folder: Path, seed: int = 0, **image_options) -> None:
    """A model and its processor from `parts`, arguments of `from_vision_text_pretrained`; `seed` draws the adapter."""
    torch.manual_seed(seed)
    OmniFusionForConditionalGeneration.from_vision_text_pretrained(**parts).save_pretrained(folder)
    image_options = {"image_fit": "pad"} | image_options
    OmniFusionProcessor.from_vision_text_pretrained(**parts, image_options=image_options).save_pretrained(folder)


def export(trained: Path, out: Path) -> int:
    """Writes bfloat16 weights, processor and demo images; returns the checkpoint's bytes. Raises `ValueError` above
    10 MB."""
    model = AutoModelForImageTextToText.from_pretrained(trained).to(torch.bfloat16)
    processor = AutoProcessor.from_pretrained(trained)
    with staged_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)
        drop_remote_code(folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size > MOST_BYTES:
            raise ValueError(f"the checkpoint has {size} bytes, at most {MOST_BYTES} are allowed; make a part smaller")
        write_demo_images(folder / "images")
    return size


def drop_remote_code(folder: Path) -> None:
    """Removes copies of the code, because the package itself has it, and the paths of the parts."""
    for copy in folder.glob("*.py"):
        copy.unlink()
    for path in folder.glob("*config.json"):
        content = without(json.loads(path.read_text()), {"auto_map", "_name_or_path"})
        write_whole(path, json.dumps(content, indent=2) + "\n")


def without(content, names: set[str]):
    """JSON content without the keys `names`, at any depth."""
    if isinstance(content, dict):
        return {key: without(value, names) for key, value in content.items() if key not in names}
    return [without(value, names) for value in content] if isinstance(content, list) else content


def write_demo_images(folder: Path) -> None:
    """Test images of each topic with question and truth, whether answered rightly or not; each topic skips the
    indices of those before, so no scene occurs twice."""
    folder.mkdir()
    questions, skip = [], 0
    for topic, count in DEMO.items():
        for i, example in enumerate(examples("test", topic, skip + count)[skip:], 1):
            name = f"{topic.replace(', ', '-').replace(' ', '-')}-{i}.png"
            Image.fromarray(example.drawing.image).save(folder / name, optimize=True)
            questions.append({"image": name, "question": example.question, "truth": example.answer})
        skip += count
    write_whole(folder / "questions.json", json.dumps(questions, indent=1) + "\n")
