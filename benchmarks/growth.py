"""How cost grows with the number of views, encoders, answer tokens, sample tokens and loader workers.

    python benchmarks/growth.py [--only NAME ...] [--plot docs/performance/growth.png]

A small model with random weights, float32, one thread. Each point is the median of CPU seconds (of wall-clock seconds
for workers, which share the machine). The exponent is the slope of the cost above that of the smallest point, in
logarithms, over the larger half of the points: 1 is linear. The expected one is that of the multiplications: of
layers, which grow with the tokens, and of causal attention, which grow with their square.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peers import IMAGE_TOKEN, drawings
from torch.utils.data import DataLoader
from transformers import CLIPVisionConfig, LlamaConfig

from omnifusion_hf import OmniFusionConfig, OmniFusionForConditionalGeneration, OmniFusionImageProcessor
from omnifusion_hf.figures import new_figure, save_figure
from omnifusion_hf.model.modeling_omnifusion_projector import PROJECTORS


VISION = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
VISION |= {"image_size": 224, "patch_size": 14}
TEXT = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8}
TEXT |= {"vocab_size": 32064, "max_position_embeddings": 8192, "pad_token_id": 0, "eos_token_id": None}
TOKENS = 256  # of a view


@dataclass
class Series:
    """What is measured at each size, and what should be proportional to it."""

    unit: str
    sizes: list
    run: Callable  # makes a function of no argument for a size
    expected: Callable[[int], float] | None
    clock: Callable[[], float] = time.process_time


def model(encoders: int = 1, projector: str = "mlp") -> OmniFusionForConditionalGeneration:
    torch.manual_seed(0)
    vision = {"encoder_configs": [CLIPVisionConfig(**VISION)] * encoders}
    queries = {"projector_num_queries": TOKENS, "projector_type": projector}
    config = OmniFusionConfig(vision_config=vision, text_config=LlamaConfig(**TEXT), **queries)
    return OmniFusionForConditionalGeneration(config).eval()


def pixels(views: int) -> torch.Tensor:
    return torch.randn(views, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def ids(images: int, words: int) -> torch.Tensor:
    text = torch.randint(10, 30000, (1, words), generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.full((1, images * TOKENS), IMAGE_TOKEN), text], dim=1)


def views(count: int) -> Callable:
    """A prompt of one image with so many views, and one generated token."""
    ours, inputs = model(), {"input_ids": ids(count, 32), "pixel_values": pixels(count)}
    return lambda: ours.generate(**inputs, image_view_index=torch.arange(count), max_new_tokens=1, do_sample=False)


def features(encoders: int, projector: str = "mlp") -> Callable:
    ours = model(encoders, projector)
    return lambda: ours.get_image_features(pixels(4))


def answer(tokens: int) -> Callable:
    ours, inputs = model(), {"input_ids": ids(1, 32), "pixel_values": pixels(1)}
    return lambda: ours.generate(**inputs, max_new_tokens=tokens, do_sample=False)


def step(tokens: int) -> Callable:
    """Forward and backward of a text sample, the LLM trained."""
    ours, sample = model().train(), ids(0, tokens)

    def run():
        with torch.enable_grad():
            ours(input_ids=sample, labels=sample).loss.backward()

    return run


def multiplications(tokens: int, per_token: float) -> float:
    """Of the LLM."""
    width, layers = TEXT["hidden_size"], TEXT["num_hidden_layers"]
    per_token += layers * (4 * width**2 + 3 * width * TEXT["intermediate_size"])
    return tokens * per_token + layers * width * tokens**2


def of_views(count: int) -> float:
    """Each view goes through an encoder."""
    width = VISION["hidden_size"]
    layer = TOKENS * (4 * width**2 + 2 * width * VISION["intermediate_size"]) + 2 * width * TOKENS**2
    return count * VISION["num_hidden_layers"] * layer + multiplications(count * TOKENS, 0)


class Images(torch.utils.data.Dataset):
    def __init__(self):
        self.images, self.processor = drawings(), OmniFusionImageProcessor(view_strategy="grid")

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.processor(self.images[index % 4], return_tensors="pt")["pixel_values"]


def loading(workers: int) -> Callable:
    def run():
        for _ in DataLoader(Images(), batch_size=None, num_workers=workers):
            pass

    return run


SERIES = {
    "views of an image": Series("views", [1, 2, 5, 10, 20, 40], views, of_views),
    "encoders": Series("encoders", [1, 2, 3], features, float),
    "tokens of an answer": Series("tokens", [16, 32, 64, 128, 256, 512], answer, float),
    "tokens of a training sample": Series(
        "tokens", [1, 64, 256, 1024, 2048, 4096], step, partial(multiplications, per_token=TEXT["hidden_size"] * 32064)
    ),
    "adapters": Series("", list(PROJECTORS), lambda name: features(1, name), None),
    "loader workers": Series("workers", [0, 1, 2, 4], loading, None, time.perf_counter),
}


@torch.no_grad()
def measure(series: Series, repeats: int) -> Iterator[float]:
    """Seconds at each size."""
    for size in series.sizes:
        run, taken = series.run(size), []
        run()
        for _ in range(repeats):
            start = series.clock()
            run()
            taken.append(series.clock() - start)
        yield statistics.median(taken)


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """The slope in logarithms over the larger half of the sizes, of the cost that is added to the smallest one's."""
    extra = [(size - sizes[0], taken - seconds[0]) for size, taken in zip(sizes, seconds)][max(len(sizes) // 2, 1) :]
    return float(np.polyfit(*(list(map(math.log, side)) for side in zip(*extra)), 1)[0])


def draw(found: dict[str, list[float]], path: Path):
    """A panel per series; the dashed line is the expected growth, through the point in the middle."""
    figure = new_figure(12, 3 * math.ceil(len(found) / 3))
    for index, (name, seconds) in enumerate(found.items(), start=1):
        panel, sizes = figure.add_subplot(math.ceil(len(found) / 3), 3, index), SERIES[name].sizes
        panel.set(title=name, xlabel=SERIES[name].unit, ylabel="seconds")
        expected = SERIES[name].expected
        if expected is None:
            panel.bar(list(map(str, sizes)), seconds)
            panel.tick_params("x", rotation=20)
        else:
            middle = len(sizes) // 2
            unit = (seconds[middle] - seconds[0]) / (expected(sizes[middle]) - expected(sizes[0]))
            line = [seconds[0] + unit * (expected(size) - expected(sizes[0])) for size in sizes]
            panel.plot(sizes, line, "--", color="grey")
            panel.plot(sizes, seconds, "o-")
        panel.set_ylim(bottom=0)
    save_figure(figure, path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(SERIES), choices=list(SERIES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="PNG of all series")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| cost with | seconds | exponent | expected |\n|---|---|---|---|")
    found = {}
    for name in options.only:
        series = SERIES[name]
        found[name] = list(measure(series, options.repeats))
        told = ", ".join(f"{size}: {taken:.3f}" for size, taken in zip(series.sizes, found[name]))
        powers = "|"
        if series.expected:
            expected = exponent(series.sizes, list(map(series.expected, series.sizes)))
            powers = f"{exponent(series.sizes, found[name]):.2f} | {expected:.2f}"
        print(f"| {name} | {told} | {powers} |", flush=True)
    if options.plot:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
