"""Memory of a model loaded in fewer bits, against the same model in bfloat16.

    python benchmarks/quantization.py [--only "torchao int8"]

CLIP ViT-L/14-336 and an LLM of 443 million parameters (Mistral's shape, 24 layers of width 1024, a vocabulary of
32064), random weights, on a CPU. folder: the saved files. memory: the additional memory of a process that has loaded
that folder and processed one image.
"""

import argparse
import ctypes
import gc
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    CLIPVisionConfig,
    MistralConfig,
    TorchAoConfig,
)

from omnifusion_hf import OmniFusionConfig, OmniFusionForConditionalGeneration


VIT_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
LLM = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}


def torchao(name: str, *options) -> Callable[[], TorchAoConfig]:
    """Lazy, because the import of torchao takes memory."""

    def make():
        from torchao import quantization

        return TorchAoConfig(getattr(quantization, name)(*(option(quantization) for option in options)))

    return make


METHODS = {
    "bfloat16": lambda: None,
    "bitsandbytes 8-bit": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes 4-bit": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "torchao int8": torchao("Int8WeightOnlyConfig"),
    "torchao int4": torchao("IntxWeightOnlyConfig", lambda _: torch.int4, lambda kinds: kinds.PerGroup(32)),
}


def save_model(folder: str):
    torch.manual_seed(0)
    encoder = CLIPVisionConfig(**VIT_L, patch_size=14, image_size=336)
    ids = ("image_token_id", "image_start_token_id", "image_end_token_id", "user_token_id", "bot_token_id")
    config = OmniFusionConfig(
        vision_config={"encoder_configs": [encoder]},
        text_config=MistralConfig(**LLM, num_key_value_heads=8, vocab_size=32064),
        **{name: 32000 + row for row, name in enumerate(ids)},
    )
    OmniFusionForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)


def quantise(folder: str, method: str, output: str):
    config = METHODS[method]()
    model = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config, device_map="cpu")
    model.save_pretrained(output)


def resident() -> float:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # returns freed memory to the system
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def measure(folder: str) -> float:
    """Additional MB of this process after a forward pass of a saved model, because files are read on access."""
    before = resident()
    model = AutoModelForImageTextToText.from_pretrained(folder, device_map="cpu")
    ids = torch.tensor([[5, *[model.config.image_token_id] * model.config.image_seq_length, 5]])
    with torch.no_grad():
        model(input_ids=ids, pixel_values=torch.zeros(1, 3, 336, 336))
    return resident() - before


def in_its_own_process(*words: str) -> str:
    command = [sys.executable, __file__, *words]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout


def figures(folder: str, method: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as output:
        in_its_own_process("--quantise", folder, method, output)
        size = sum(path.stat().st_size for path in Path(output).glob("*.safetensors")) / 1e6
        memory = float(in_its_own_process("--measure", output).splitlines()[-1])
    return {"folder": size, "memory": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=METHODS)
    parser.add_argument("--quantise", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quantise:
        quantise(*options.quantise)
    elif options.measure:
        print(measure(options.measure))
    else:
        compare([options.only] if options.only else list(METHODS))


def compare(methods: list[str]):
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        peer = figures(folder, "bfloat16")
        for method in methods:
            ours = peer if method == "bfloat16" else figures(folder, method)
            row = (f"{name} {size:6.0f} MB ({size / peer[name]:.2f})" for name, size in ours.items())
            print(f"{method:20}" + "   ".join(row), flush=True)


if __name__ == "__main__":
    main()
