"""Writes the checkpoints that later versions must load, once a release: `python tests/helpers/frozen.py FOLDER`.

`full` is a whole model with its processor, `lora` a LoRA checkpoint on it; `expected.safetensors` holds the logits by
which both go on.
"""

import sys
from contextlib import chdir
from pathlib import Path

import tiny
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, MistralConfig

from omnifusion_hf.training.lora import LoraSettings
from omnifusion_hf.training.stages import apply_stage


SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def config():
    """About 30 thousand parameters, most of them in two tables of 448 words."""
    vocabulary = {"vocab_size": 448, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    made = tiny.config(text=MistralConfig(**SMALL, num_key_value_heads=2, num_hidden_layers=1, **vocabulary))
    vision = CLIPVisionConfig(**SMALL, num_hidden_layers=2, image_size=32, patch_size=8)
    vision = type(made.vision_config)(encoder_configs=[vision])
    return type(made)(**(made.to_dict() | {"vision_config": vision, "text_config": made.text_config}))


def inputs(processor) -> dict:
    """What the checkpoints are asked."""
    return tiny.prompt(processor, [tiny.user(tiny.image(0), "What colour is the sky?")])


@torch.no_grad()
def write(folder: Path):
    model, expected = tiny.model(config()), {}
    processor = tiny.processor(model.config)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    expected["input_ids"] = inputs(processor)["input_ids"]
    expected["full"] = model(**inputs(processor)).logits[:, -1].clone()
    model.save_pretrained(folder / "full")
    processor.save_pretrained(folder / "full")
    model.name_or_path = "full"  # beside it, so the repository may lie anywhere
    with_lora = apply_stage(model, "lora", "lora", LoraSettings(rank=2, alpha=4, dropout=0.0))
    for parameter in with_lora.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected["lora"] = with_lora.eval()(**inputs(processor)).logits[:, -1].clone()
    with chdir(folder):
        with_lora.save_pretrained("lora")
        processor.save_pretrained("lora")
    save_file(expected, folder / "expected.safetensors")
    for path in [*folder.glob("*/*.py"), folder / "lora/README.md"]:
        path.unlink()
    print(f"{folder}: {sum(path.stat().st_size for path in folder.glob('**/*') if path.is_file())} bytes")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
