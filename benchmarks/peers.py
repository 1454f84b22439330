"""OmniFusion beside transformers' LLaVA on the same work, with the same weights, in one process.

    python benchmarks/peers.py [--pairs 7] [--only NAME ...] [--output FILE.json]

The model is CLIP ViT-L/14-336, an MLP adapter and a Llama of 8 layers (width 1024), random weights, float32. Both
sides get the same inputs, and equal outputs are checked before anything is timed. Runs alternate; a row gives the
median of the ratios of neighbouring runs and their range. Peak memory is that of one run above the weights.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from merge import Peak, seconds
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextImageProcessor,
)

from omnifusion_hf import OmniFusionConfig, OmniFusionForConditionalGeneration, OmniFusionImageProcessor
from omnifusion_hf.io import write_whole


VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
VISION |= {"patch_size": 14, "image_size": 336}
TEXT = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
TEXT |= {"vocab_size": 32064, "pad_token_id": 0, "eos_token_id": None}
IMAGE_TOKEN, TOKENS = 32000, 576
GOALS = {
    "image features": 0.97,
    "prefill, one image": 0.95,
    "48 tokens with an image": 1.0,
    "48 tokens of text": 1.0,
    "8 ragged prompts, 16 tokens": 1.0,
    "3 beams, 16 tokens": 1.0,
    "preprocessing, whole": 0.77,  # 1.3 times as many images a second, the peer being CLIP's processor
    "preprocessing, grid": 0.77,  # LLaVA-NeXT's
    "preprocessing, whole, Pillow": 1.0,  # the exact default, which peers of the torchvision backend do not have
    "preprocessing, grid, Pillow": 1.0,
    "start to first token": 1.0,
}


@dataclass
class Row:
    """Seconds and MB of both sides; ratio: ours / peer, median and range over pairs."""

    name: str
    ours: float
    peer: float
    ratio: float
    lowest: float
    highest: float
    memory: tuple[float, float]
    goal: float


def models() -> tuple[OmniFusionForConditionalGeneration, LlavaForConditionalGeneration]:
    """Both models with the same weights."""
    vision, text = CLIPVisionConfig(**VISION), LlamaConfig(**TEXT)
    torch.manual_seed(0)
    ours = OmniFusionForConditionalGeneration(
        OmniFusionConfig(vision_config={"encoder_configs": [vision]}, text_config=text)
    ).eval()
    peer = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN)
    ).eval()
    weights = {name.replace("encoders.0.", ""): weight for name, weight in ours.state_dict().items()}
    peer.load_state_dict(weights, strict=False)  # LLaVA has the encoder's last layer as well, and does not use it
    for model in (ours, peer):
        model.generation_config.update(pad_token_id=0, suppress_tokens=ours.config.special_token_ids)
    return ours, peer


def prompt(images: int, words: int, generator: torch.Generator) -> list[int]:
    text = torch.randint(10, 30000, (words,), generator=generator).tolist()
    return text[: words // 2] + [IMAGE_TOKEN] * (TOKENS * images) + text[words // 2 :]


def batch(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """Padded on the left, with random pixels for each image."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(each)) + each for each in prompts])  # (B, L)
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])  # (B, L)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if views := int((ids == IMAGE_TOKEN).sum()) // TOKENS:
        inputs["pixel_values"] = torch.randn(views, 3, 336, 336, generator=torch.Generator().manual_seed(1))
    return inputs


@torch.no_grad()
def check_equal(name: str, ours, peer):
    if isinstance(ours, torch.Tensor) and ours.dtype == torch.long:
        equal = torch.equal(ours, peer)
    else:
        equal = torch.allclose(torch.as_tensor(ours), torch.as_tensor(peer), rtol=1e-3, atol=1e-4)
    if not equal:
        raise ValueError(f"{name}: the outputs differ, so that times cannot be compared.")


def memory(run: Callable) -> float:
    with Peak("cpu") as peak:
        run()
    return peak.extra


@torch.no_grad()
def compare(name: str, ours: Callable, peer: Callable, pairs: int, equal: bool = True) -> Row:
    """Times two functions of no argument in turn, after one run of each that must give equal outputs."""
    outputs = ours(), peer()
    if equal:
        check_equal(name, *outputs)
    del outputs
    times = [(seconds(ours, "cpu"), seconds(peer, "cpu")) for _ in range(pairs)]
    ratios = [a / b for a, b in times]
    row = Row(name, *(statistics.median(side) for side in zip(*times)), statistics.median(ratios), min(ratios),
              max(ratios), (memory(ours), memory(peer)), GOALS[name])  # fmt: skip
    print(as_line(row), flush=True)
    return row


def as_line(row: Row) -> str:
    mark = "" if row.ratio <= row.goal else " missed"
    spread = f"{row.lowest:.2f}–{row.highest:.2f}"
    used = " / ".join(f"{each:.0f}" for each in row.memory)
    return f"| {row.name} | {row.ours:.3f} | {row.peer:.3f} | {row.ratio:.2f} | {spread} | {row.goal}{mark} | {used} |"


def generation_cases() -> dict[str, tuple[dict, dict]]:
    """Inputs and generation settings of each case."""
    generator = torch.Generator().manual_seed(0)
    one, text = batch([prompt(1, 40, generator)]), batch([prompt(0, 64, generator)])
    ragged = batch([prompt(index % 2, 16 + 12 * index, generator) for index in range(8)])
    return {
        "prefill, one image": (one, {"max_new_tokens": 1}),
        "48 tokens with an image": (one, {"max_new_tokens": 48}),
        "48 tokens of text": (text, {"max_new_tokens": 48}),
        "8 ragged prompts, 16 tokens": (ragged, {"max_new_tokens": 16}),
        "3 beams, 16 tokens": (one, {"max_new_tokens": 16, "num_beams": 3}),
    }


def model_rows(pairs: int, only: list[str]) -> list[Row]:
    sides = models()
    pixels = torch.randn(4, 3, 336, 336)

    def features(model) -> torch.Tensor:
        return torch.cat(list(model.get_image_features(pixels).pooler_output)).flatten()

    runs = {"image features": [lambda model=model: features(model) for model in sides]}
    for name, (inputs, settings) in generation_cases().items():
        runs[name] = [
            lambda model=model, i=inputs, s=settings: model.generate(**i, **s, do_sample=False) for model in sides
        ]
    return [compare(name, *both, pairs) for name, both in runs.items() if not only or name in only]


def drawings() -> list[Image.Image]:
    """Four images from 300 x 900 to 1080 x 1920."""
    generator = np.random.default_rng(0)
    sizes = [(300, 900), (768, 1024), (1200, 800), (1080, 1920)]
    small = [generator.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8) for height, width in sizes]
    return [Image.fromarray(each).resize((w, h), Image.Resampling.BICUBIC) for each, (h, w) in zip(small, sizes)]


def preprocessing_rows(pairs: int, only: list[str]) -> list[Row]:
    images, rows = drawings(), []
    clip = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    for strategy, peer in (("whole", clip), ("grid", LlavaNextImageProcessor())):
        for backend, suffix in (("torchvision", ""), ("pil", ", Pillow")):
            name = f"preprocessing, {strategy}{suffix}"
            if not only or name in only:
                ours = OmniFusionImageProcessor(view_strategy=strategy, resize_backend=backend)
                runs = [lambda side=side: side(images, return_tensors="pt")["pixel_values"] for side in (ours, peer)]
                rows.append(compare(name, *runs, pairs, equal=False))  # other crops, and Pillow's own levels
    return rows


MODEL_ROWS = [name for name in GOALS if not name.startswith(("preprocessing", "start"))]
START = """
import sys, torch, omnifusion_hf
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
model.generate(input_ids=torch.full((1, 8), 7), max_new_tokens=1, do_sample=False)
"""


def start_row(pairs: int) -> Row:
    """A process that loads a folder of some 2 GB and generates a token."""
    with tempfile.TemporaryDirectory() as folder:
        for name, model in zip(("ours", "peer"), models()):
            model.save_pretrained(Path(folder, name))
        runs = [
            lambda name=name: subprocess.run(
                [sys.executable, "-c", START, str(Path(folder, name))], check=True, capture_output=True
            )
            for name in ("ours", "peer")
        ]
        return compare("start to first token", *runs, pairs, equal=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=[], choices=list(GOALS))
    parser.add_argument("--output", type=Path, help="JSON file of the rows")
    options = parser.parse_args()
    print("| work | ours, s | LLaVA, s | ratio | range | goal | peak MB |\n|---|---|---|---|---|---|---|")
    rows = preprocessing_rows(options.pairs, options.only)
    if not options.only or {*options.only} & {*MODEL_ROWS}:
        rows += model_rows(options.pairs, options.only)
    if not options.only or "start to first token" in options.only:
        rows.append(start_row(min(options.pairs, 5)))
    if options.output:
        write_whole(options.output, json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
