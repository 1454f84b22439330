"""Speed and memory on one GPU of the H100 class, in one command of at most eight minutes.

    python benchmarks/gpu.py [--output gpu.json] [--only PART ...] [--tiny]

It needs this package, transformers and torch for CUDA. Wheels that a bare machine may lack: `flash-attn` (without it,
rows of flash attention are reported as failed), `bitsandbytes` (4 bit), `peft` (LoRA), `pytest` (tests marked gpu).
Weights are random and made on the device. Every part has a budget in seconds; a part that fails or exceeds it is a
row. What was measured before is kept: the JSON file and its Markdown twin are rewritten after each row.

MFU: 6 FLOPs per trained and 4 per frozen parameter and token, over the device's dense bfloat16 peak. Share of the
bandwidth limit: bytes of the LLM's weights read per step, over the time of a step and the device's bandwidth.
`--tiny` runs the same code with small sizes on a CPU.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from merge import seconds
from torch import nn
from transformers import CLIPVisionConfig, Dinov2Config, MistralConfig

from omnifusion_hf import AutoModelForVision2Seq, OmniFusionConfig
from omnifusion_hf.io import write_whole
from omnifusion_hf.training.stages import apply_stage


VIT_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
MISTRAL_7B = {"vocab_size": 32064}
TINY_VIT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_LLM = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY_LLM |= {"num_key_value_heads": 2, "vocab_size": 32064}
# Dense bfloat16 FLOP/s and bytes/s by a part of the device's name (NVIDIA's data sheets).
PEAKS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12), "A100": (312e12, 2.0e12)}


class Bench:
    """Sizes, device and the rows so far."""

    def __init__(self, tiny: bool, output: Path):
        self.tiny, self.output, self.rows = tiny, output, []
        self.device = "cpu" if tiny else "cuda"
        name = "CPU" if tiny else torch.cuda.get_device_name()
        self.flops, self.bandwidth = next((p for part, p in PEAKS.items() if part in name), (1e12, 1e11))
        self.header = {"device": name, "torch": torch.__version__, "tiny": tiny}

    def add(self, part: str, name: str, **figures):
        self.rows.append({"part": part, "name": name} | figures)
        write_whole(self.output, json.dumps(self.header | {"rows": self.rows}, indent=1))
        write_whole(self.output.with_suffix(".md"), self.as_markdown())
        print(self.rows[-1], flush=True)

    def as_markdown(self) -> str:
        lines = [
            f"{self.header['device']}, torch {self.header['torch']}",
            "",
            "| part | row | figures |",
            "|---|---|---|",
        ]
        for row in self.rows:
            figures = ", ".join(f"{name} {value}" for name, value in row.items() if name not in ("part", "name"))
            lines.append(f"| {row['part']} | {row['name']} | {figures} |")
        return "\n".join(lines) + "\n"

    def model(self, adapter: str = "mlp", attention: str = "sdpa", dtype=torch.bfloat16, layers: int | None = None):
        """Mistral 7B's shape with CLIP ViT-L/14-336, and DINOv2-L beside it for `summation`."""
        vit, side = (TINY_VIT, 28) if self.tiny else (VIT_L, 336)
        encoders = [CLIPVisionConfig(**vit, patch_size=14, image_size=side)]
        if adapter == "summation":
            shape = {name: value for name, value in vit.items() if name != "intermediate_size"}
            encoders.append(Dinov2Config(**shape, patch_size=14, image_size=side))
        text = MistralConfig(
            **(TINY_LLM if self.tiny else MISTRAL_7B) | ({"num_hidden_layers": layers} if layers else {})
        )
        config = OmniFusionConfig(
            vision_config={"encoder_configs": encoders}, text_config=text, projector_type=adapter
        )
        torch.manual_seed(0)
        with torch.device(self.device):
            model = AutoModelForVision2Seq.from_config(config, dtype=dtype, attn_implementation=attention)
        return model.eval()

    def batch(self, model, length: int, images: int = 1) -> dict[str, torch.Tensor]:
        """A row of `length` tokens with images; the last half of the text is the answer."""
        size, tokens = model.config.vision_config.image_size, model.config.image_seq_length
        ids = torch.randint(10, 30000, (1, max(length, images * tokens + 16)), device=self.device)
        ids[:, : images * tokens] = model.config.image_token_id
        labels = ids.clone()
        labels[:, : (ids.shape[1] + images * tokens) // 2] = -100
        pixels = torch.randn(images, 3, size, size, device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}

    def seconds(self, run: Callable, repeats: int = 3) -> float:
        """The median of some runs after one that warms up."""
        seconds(run, self.device)
        return statistics.median(seconds(run, self.device) for _ in range(1 if self.tiny else repeats))

    def peak_gb(self) -> float:
        return 0.0 if self.tiny else round(torch.cuda.max_memory_allocated() / 1e9, 1)

    def release(self):
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def train_step(model: nn.Module, inputs: dict, optimizer) -> Callable:
    def step():
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def flops_per_token(model: nn.Module) -> float:
    """6 per trained, 4 per frozen parameter of the LLM; its embeddings are looked up."""
    parameters = [p for name, p in model.named_parameters() if "language_model" in name or "lm_head" in name]
    return sum((6 if p.requires_grad else 4) * p.numel() for p in parameters)


def measure_step(bench: Bench, part: str, name: str, model, length: int, compiled: bool = False):
    inputs = bench.batch(model, length)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=bench.device == "cuda")
    model.train()
    model.gradient_checkpointing_enable()
    run = torch.compile(model) if compiled else model
    seconds = bench.seconds(train_step(run, inputs, optimizer))
    tokens = inputs["input_ids"].numel() / seconds
    mfu = tokens * flops_per_token(model) / bench.flops
    bench.add(part, name, tokens_per_s=round(tokens), MFU=round(mfu, 3), peak_GB=bench.peak_gb())


def with_lora(model):
    from peft import LoraConfig, get_peft_model

    targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    return get_peft_model(
        model, LoraConfig(r=8 if model.config.text_config.hidden_size < 128 else 128, target_modules=targets)
    )


def training(bench: Bench):
    """Steps of stage 1 and LoRA at two lengths; then compiled, which takes a minute each before the first step."""
    for compiled in (False, True):
        for length in (2048, 4096) if not bench.tiny else (32,):
            for stage in ("pretrain", "lora"):
                bench.release()
                model = bench.model()
                if stage == "pretrain":
                    apply_stage(model, "pretrain")
                else:
                    model = with_lora(model)
                name = f"{stage}, {length} tokens" + (", compiled" if compiled else "")
                measure = partial(measure_step, bench, "training", name, model, length, compiled)
                attempt(bench, "training", name, measure)
                del model, measure


def full_training(bench: Bench):
    """Half of the LLM's layers: a trained parameter takes 16 bytes, so all take 131 GB."""
    bench.release()
    model = bench.model(layers=None if bench.tiny else 16)
    apply_stage(model, "finetune")
    measure_step(bench, "full training", "finetune, 16 layers, 2048 tokens", model, 32 if bench.tiny else 2048)


def summation(bench: Bench):
    bench.release()
    model = bench.model("summation")
    apply_stage(model, "pretrain")
    measure_step(bench, "summation", "pretrain, 2048 tokens", model, 32 if bench.tiny else 2048)


def attention(bench: Bench):
    """The same step with each attention; and whether their logits are equal."""
    expected = None
    for name in ("eager", "sdpa", "flash_attention_2"):
        bench.release()

        def compare(name=name):
            model = bench.model(attention=name, layers=2)
            with torch.no_grad():
                logits = model(**bench.batch(model, 512)).logits.float()
            nonlocal expected
            expected = logits if expected is None else expected
            difference = ((logits - expected).abs().max() / expected.abs().max()).item()
            bench.add("attention", name, relative_difference_to_eager=round(difference, 5))

        attempt(bench, "attention", name, compare)


def precision(bench: Bench):
    logits = []
    for dtype in (torch.float32, torch.bfloat16):
        bench.release()
        model = bench.model(layers=2, dtype=dtype)
        torch.manual_seed(1)
        with torch.no_grad():
            logits.append(model(**bench.batch(model, 512)).logits.float())
    difference = ((logits[1] - logits[0]).abs().max() / logits[0].abs().max()).item()
    bench.add("precision", "bfloat16 to float32", relative_difference=round(difference, 4))


@torch.no_grad()
def generation(bench: Bench):
    """Prefill with an image, and decoding at three batch sizes, eager and with a static cache and compilation."""
    bench.release()
    model = bench.model()
    inputs = bench.batch(model, 640)
    inputs.pop("labels")
    seconds = bench.seconds(lambda: model(**inputs, logits_to_keep=1))
    bench.add("generation", "prefill, one image", seconds=round(seconds, 4))
    weights = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "vision" not in name)
    tokens = 4 if bench.tiny else 64
    for cache in (None, "static"):
        for size in (1, 8, 32):
            name = f"decode, batch {size}" + (", static cache, compiled" if cache else "")

            def decode(size=size, cache=cache, name=name):
                prompts = torch.randint(10, 30000, (size, 32), device=bench.device)
                settings = {"do_sample": False, "cache_implementation": cache, "pad_token_id": 0, "eos_token_id": None}
                times = [
                    bench.seconds(lambda n=n: model.generate(input_ids=prompts, max_new_tokens=n, **settings), 2)
                    for n in (1, tokens + 1)
                ]
                step = (times[1] - times[0]) / tokens
                share = weights / bench.bandwidth / step
                bench.add("generation", name, tokens_per_s=round(size / step), share_of_bandwidth=round(share, 3))

            attempt(bench, "generation", name, decode)


def run_command(bench: Bench, part: str, name: str, command: list, seconds: float):
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    figures = {"exit_code": done.returncode, "seconds": round(time.perf_counter() - start, 1)}
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
    bench.add(part, name, **figures, printed=" ".join(last)[:200])


def merge(bench: Bench):
    command = [sys.executable, Path(__file__).with_name("merge.py"), "--only", "merge", "--repeats", "1"]
    run_command(
        bench, "merge", "summation against its formula", [*command, "--device", bench.device, "--views", "1"], 120
    )


def quantization(bench: Bench):
    """4 bit: the LLM's linear layers replaced, memory and decoding."""
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    with tempfile.TemporaryDirectory() as folder:
        bench.model(layers=None if bench.tiny else 8).save_pretrained(folder)
        bench.release()
        four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
        start = time.perf_counter()
        model = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=four, device_map=bench.device)
        loaded = time.perf_counter() - start
    ids = torch.full((1, 32), 7, device=bench.device)
    seconds = bench.seconds(lambda: model.generate(input_ids=ids, max_new_tokens=4, do_sample=False))
    bench.add("4 bit", "8 layers", load_s=round(loaded, 1), tokens_per_s=round(4 / seconds), peak_GB=bench.peak_gb())


def tests(bench: Bench):
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", Path(__file__).parents[1] / "tests"]
    run_command(bench, "tests", "pytest -m gpu", [*command, *(["--collect-only"] if bench.tiny else [])], 150)


# Parts and their budgets in seconds.
PARTS = {
    training: 150, generation: 90, attention: 30, precision: 15, summation: 30, full_training: 40, merge: 30,
    quantization: 30, tests: 60,
}  # fmt: skip


def attempt(bench: Bench, part: str, name: str, run: Callable):
    """Runs something; what it raises becomes a row."""
    try:
        run()
    except Exception as error:
        bench.add(
            part, name, failed=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = {part.__name__.replace("_", "-"): part for part in PARTS}
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--only", nargs="+", default=list(names), choices=list(names))
    parser.add_argument("--tiny", action="store_true", help="small sizes on a CPU, to test this script")
    options = parser.parse_args()
    bench, start = Bench(options.tiny, options.output), time.perf_counter()
    for name in options.only:
        began = time.perf_counter()
        attempt(bench, name, "whole part", lambda name=name: names[name](bench))
        took, budget = time.perf_counter() - began, PARTS[names[name]]
        if took > budget:
            bench.add(name, "budget", seconds=round(took), budget=budget)
    bench.add("all", "total", seconds=round(time.perf_counter() - start))


if __name__ == "__main__":
    main()
