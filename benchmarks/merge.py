"""The merge of all layers (summation adapter) against its formula written out literally, and the tower against LLaVA.

    python benchmarks/merge.py [--views 4] [--repeats 3] [--device cpu] [--only tower]

Sizes: CLIP ViT-L/14 and DINOv2 ViT-L/14 at 336 px, 48 layers, 1024 -> 4096, float32, the same weights on both sides.
The literal formula keeps the hidden states of all layers and a projected copy of each, then sums them with weights.
Time is that of the adapter. Memory is the peak above the memory before (weights, and for training their gradients);
features are generated one by one, as by an encoder.
"""

import argparse
import ctypes
import gc
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers import CLIPVisionConfig, Dinov2Config, LlavaConfig, LlavaModel, MistralConfig

from omnifusion_hf import OmniFusionConfig, OmniFusionModel
from omnifusion_hf.model.modeling_omnifusion_projector import SummationProjector


VIT_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14, "image_size": 336}
# An LLM of the right width with one layer: only the adapter and the tower are measured.
LLM = {"hidden_size": 4096, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 32}
BOUNDS = {
    "forward time": 0.8,
    "forward memory": 0.35,
    "training time": 0.9,
    "training memory": 0.6,
    "tower time": 0.97,
}


def config(encoders: list, **fields) -> OmniFusionConfig:
    text = MistralConfig(**LLM, num_key_value_heads=8, vocab_size=64)
    ids = ("image_token_id", "image_start_token_id", "image_end_token_id", "user_token_id", "bot_token_id")
    special = {name: row for row, name in enumerate(ids)}
    return OmniFusionConfig(vision_config={"encoder_configs": encoders}, text_config=text, **special, **fields)


def literal(projector: SummationProjector, features: Iterator[torch.Tensor]) -> torch.Tensor:
    """The formula in its docstring, term by term."""
    hidden_states = list(features)
    layers = [layer for merge in projector.merges for layer in merge.maps]
    coefficients = [coefficient for merge in projector.merges for coefficient in merge.coefficients]
    projected = [
        nn.functional.layer_norm(states, states.shape[-1:], layer.gain, layer.shift) @ layer.weight.T  # (views, P, D)
        for states, layer in zip(hidden_states, layers)
    ]
    merged = sum(coefficient * copy for coefficient, copy in zip(coefficients, projected))
    return projector.linear(nn.functional.gelu(merged))


def features(views: int, device: str, layers: int = 48) -> Iterator[torch.Tensor]:
    """Features as an encoder yields them: separate tensors, to which only the consumer holds references."""
    generator = torch.Generator(device).manual_seed(0)
    for _ in range(layers):
        yield torch.randn(views, 576, 1024, generator=generator, device=device)


class Peak:
    """Peak memory in MB during the block, above the memory before; on a CPU resident memory, sampled every 2 ms."""

    def __init__(self, device: str):
        self.device, self.stop = device, threading.Event()

    def __enter__(self):
        gc.collect()
        # Returns freed memory to the system, so that new allocations are visible.
        ctypes.CDLL(None).malloc_trim(0)
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()  # the peak is now the current memory
        self.before = self.peak = self.now()
        if self.device == "cpu":
            self.watch = threading.Thread(target=self._watch)
            self.watch.start()
        return self

    def now(self) -> float:
        if self.device != "cpu":
            return torch.cuda.max_memory_allocated() / 1e6
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 1e6

    def _watch(self):
        while not self.stop.wait(0.002):
            self.peak = max(self.peak, self.now())

    def __exit__(self, *error):
        self.stop.set()
        if self.device == "cpu":
            self.watch.join()
        self.extra = max(self.peak, self.now()) - self.before


def seconds(run: Callable, device: str) -> float:
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def time_ratio(ours: Callable, peer: Callable, repeats: int, device: str) -> tuple[float, float, float]:
    """Median seconds of both, measured in turn after a warm-up, and the median ratio of neighbours."""
    pairs = [(seconds(ours, device), seconds(peer, device)) for _ in range(repeats + 1)][1:]
    ours_s, peer_s = (statistics.median(side) for side in zip(*pairs))
    return ours_s, peer_s, statistics.median(a / b for a, b in pairs)


def merge_figures(views: int, repeats: int, device: str) -> dict[str, tuple[float, float, float]]:
    encoders = [CLIPVisionConfig(**VIT_L, intermediate_size=4096), Dinov2Config(**VIT_L)]
    torch.manual_seed(0)
    projector = SummationProjector(config(encoders, projector_type="summation")).to(device)
    for merge in projector.merges:
        for parameter in (merge.coefficients, *(layer.shift for layer in merge.maps)):
            nn.init.normal_(parameter)
    for parameter in projector.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ready = list(features(views, device))

    def forward(read):
        with torch.no_grad():
            return read(iter(ready))

    def train(read, source):
        read(source).square().mean().backward()

    adapters = (projector, lambda states: literal(projector, states))
    check_equal(forward(adapters[0]), forward(adapters[1]))
    check_equal(adapters[0](iter(ready)).detach(), forward(adapters[1]))
    check_equal(forward(adapters[0]), per_encoder(projector, ready))
    figures = {
        "forward time": time_ratio(*(lambda a=a: forward(a) for a in adapters), repeats, device),
        "training time": time_ratio(*(lambda a=a: train(a, iter(ready)) for a in adapters), repeats, device),
    }
    ready.clear()
    for name, graph in (("forward memory", False), ("training memory", True)):
        extra = []
        for adapter in adapters:
            with Peak(device) as peak, torch.set_grad_enabled(graph):
                train(adapter, features(views, device)) if graph else adapter(features(views, device))
            extra.append(peak.extra)
        figures[name] = (*extra, extra[0] / extra[1])
    return figures


@torch.no_grad()
def per_encoder(projector: SummationProjector, ready: list[torch.Tensor]) -> torch.Tensor:
    """Each encoder merged separately, then the sum."""
    first, second = (merge(iter(ready[24 * i :])) for i, merge in enumerate(projector.merges))
    return projector.linear(projector.act(first + second))


def check_equal(ours: torch.Tensor, expected: torch.Tensor):
    difference = ((ours - expected).abs().max() / expected.abs().max()).item()
    print(f"largest relative difference {difference:.1e} (bound 1e-4)")
    if difference > 1e-4:
        raise ValueError(f"the results differ by {difference}")


@torch.no_grad()
def tower_figures(views: int, repeats: int, device: str) -> dict[str, tuple[float, float, float]]:
    """`get_image_features` of one CLIP ViT-L/14-336 at layer -2 with the mlp adapter, and of transformers' LLaVA."""
    clip = {**VIT_L, "intermediate_size": 4096, "model_type": "clip_vision_model"}
    ours = OmniFusionModel(config([CLIPVisionConfig(**VIT_L, intermediate_size=4096)])).to(device).eval()
    text = MistralConfig(**LLM, num_key_value_heads=8, vocab_size=64)
    llava = LlavaModel(LlavaConfig(vision_config=clip, text_config=text, image_token_id=0)).to(device).eval()
    ours.vision_tower.encoders[0].load_state_dict(llava.vision_tower.state_dict(), strict=False)
    ours.multi_modal_projector.load_state_dict(llava.multi_modal_projector.state_dict())
    pixels = torch.randn(views, 3, 336, 336, device=device)
    runs = [lambda model=model: model.get_image_features(pixels).pooler_output for model in (ours, llava)]
    check_equal(torch.stack(list(runs[0]())), torch.stack(list(runs[1]())))
    return {"tower time": time_ratio(*runs, 3 * repeats, device)}  # a layer of 24: noise must be small


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", choices=("merge", "tower"), help="only this half")
    options = vars(parser.parse_args())
    only = options.pop("only")
    figures = {} if only == "tower" else merge_figures(**options)
    figures |= {} if only == "merge" else tower_figures(**options)
    print("| measurement | ours | peer | ratio | bound |\n|---|---|---|---|---|")
    for name, (ours, peer, ratio) in figures.items():
        unit = "MB" if "memory" in name else "s"
        print(f"| {name} | {ours:.2f} {unit} | {peer:.2f} {unit} | {ratio:.2f} | {BOUNDS[name]} |")
    return int(any(ratio > BOUNDS[name] for name, (_, _, ratio) in figures.items()))


if __name__ == "__main__":
    sys.exit(main())
