"""Compares a converted folder with the release, stage by stage, and prints one line per image and a table.

    omnifusion convert verify --source RELEASE --vision CLIP --converted FOLDER --images a.png b.jpg

Both run on the same images and questions: the release as reimplemented in original_v1_1.py, the folder by
`from_pretrained`, chat template and plain `generate(**inputs)`. Both get an image as a viewer shows it, since the
release is known to ignore EXIF orientation and transparency. Exit status 1 if a bound is exceeded.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from omnifusion_hf import OmniFusionImageProcessor
from omnifusion_hf.model.image_processing_omnifusion import load_image

from .original_v1_1 import Original


QUESTIONS = ["What is the sky color on this image?", "Какого цвета небо на этом изображении?"]
# Largest absolute difference allowed in float32; ids must be the same.
BOUNDS = {"pixels": 2e-5, "visual tokens": 2e-5, "embeddings": 2e-5, "last hidden state": 1e-4, "logits": 1e-4}


@dataclass
class Row:
    """One line of the table; `difference` is the largest over all cases."""

    stage: str
    difference: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.bound


def as_shown(path: Path) -> tuple[Image.Image, bool]:
    """The image as a viewer shows it, and whether its file holds the same pixels, which the release uses."""
    shown = load_image(path, OmniFusionImageProcessor.max_image_pixels)
    with Image.open(path) as file:
        stored = file.convert("RGB")
    return shown, shown.size == stored.size and shown.tobytes() == stored.tobytes()


@torch.no_grad()
def converted_outputs(model, processor, image: Image.Image | None, question: str) -> dict[str, torch.Tensor]:
    """The same stages as `Original.outputs`, from the converted folder."""
    content = ([] if image is None else [{"type": "image", "image": image}]) + [{"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    seen = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(embeddings=kwargs["inputs_embeds"][0]), with_kwargs=True
    )
    output = model.model(**inputs)
    hook.remove()
    stages = {"embeddings": seen["embeddings"], "last hidden state": output.last_hidden_state[0]}
    if image is not None:
        tokens = model.get_image_features(inputs["pixel_values"]).pooler_output[0]
        stages = {"pixels": inputs["pixel_values"][0], "visual tokens": tokens} | stages
    length = inputs["input_ids"].shape[1]
    return stages | {
        "logits": model.lm_head(output.last_hidden_state)[0],
        "greedy ids": model.generate(**inputs, num_beams=1, early_stopping=False)[0, length:],
        "beam-3 ids": model.generate(**inputs)[0, length:],
    }


def difference(stage: str, original: torch.Tensor, converted: torch.Tensor) -> float:
    """Largest absolute difference; for ids the number of differing positions; infinity if shapes differ."""
    if stage == "logits":
        converted = converted[..., : original.shape[-1]]  # the rows of special tokens are only in the converted model
    if original.shape != converted.shape:
        return float("inf")
    if stage.endswith("ids"):
        return float((original != converted).sum())
    return (original.float() - converted.float()).abs().max().item()


def verify(source: Path, vision: Path, converted: Path, images: list[Path], dtype=torch.float32) -> list[Row]:
    """Rows over all images x questions and the questions alone. Holds one of the two models in memory at a time."""
    cases = [(None, question) for question in QUESTIONS]
    for path in images:
        shown, as_stored = as_shown(path)
        print(f"{path}: {'as stored' if as_stored else 'as a viewer shows it; the release uses it as stored'}")
        cases += [(shown, question) for question in QUESTIONS]
    original = Original.load(source, vision, dtype)
    expected = [original.outputs(*case) for case in tqdm(cases, desc="release")]
    del original
    model = AutoModelForImageTextToText.from_pretrained(converted, dtype=dtype).eval()
    processor = AutoProcessor.from_pretrained(converted)
    worst: dict[str, float] = {}
    for case, stages in zip(tqdm(cases, desc="converted"), expected):
        found = converted_outputs(model, processor, *case)
        for stage, value in stages.items():
            worst[stage] = max(worst.get(stage, 0.0), difference(stage, value, found[stage]))
    return [Row(stage, value, BOUNDS.get(stage, 0.0)) for stage, value in worst.items()]


def print_table(rows: list[Row]) -> bool:
    """Prints the table; returns whether all rows are within their bounds."""
    print(f"{'stage':<20}{'max difference':>16}{'bound':>10}  ok")
    for row in rows:
        print(f"{row.stage:<20}{row.difference:>16.3g}{row.bound:>10.3g}  {'yes' if row.ok else 'NO'}")
    return all(row.ok for row in rows)


if __name__ == "__main__":
    from omnifusion_hf.cli import main

    sys.exit(main(["convert", "verify", *sys.argv[1:]]))
