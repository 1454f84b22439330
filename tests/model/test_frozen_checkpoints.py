"""Checkpoints that earlier versions wrote (frozen.py) load whole, with every name in its place, and answer as then."""

import re
import shutil
from pathlib import Path

import frozen
import peft
import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.integrations.peft import MIN_PEFT_VERSION

import omnifusion_hf
from omnifusion_hf.training.lora import merge


CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
VERSIONS = sorted(path.name for path in CHECKPOINTS.iterdir())

# PEFT 0.21 reads an attribute that transformers renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(params=VERSIONS)
def checkpoint(request, monkeypatch, tmp_path) -> Path:
    """A copy of one version's folder, which is where its LoRA checkpoint finds its base."""
    folder = shutil.copytree(CHECKPOINTS / request.param, tmp_path / request.param)
    monkeypatch.chdir(folder)
    return folder


def load(folder: Path):
    """A model and what did not fit."""
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    return model.eval(), {key: names for key, names in info.items() if names}


def next_logits(model, folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return model(**frozen.inputs(AutoProcessor.from_pretrained(folder / "lora"))).logits[:, -1]


def test_this_version_has_a_checkpoint_and_all_are_small():
    assert f"v{omnifusion_hf.__version__}" in VERSIONS
    assert sum(path.stat().st_size for path in CHECKPOINTS.glob("**/*") if path.is_file()) < 300_000 * len(VERSIONS)


def test_full_checkpoint_loads_whole_and_answers_as_then(checkpoint):
    model, unfit = load(checkpoint / "full")
    assert not unfit
    expected = load_file("expected.safetensors")
    assert torch.equal(frozen.inputs(AutoProcessor.from_pretrained("full"))["input_ids"], expected["input_ids"])
    torch.testing.assert_close(next_logits(model, checkpoint), expected["full"], rtol=1e-4, atol=1e-5)


def test_lora_checkpoint_loads_whole_and_merges_and_answers_as_then(checkpoint):
    model, _ = load(checkpoint / "full")
    info = model.load_adapter("lora")
    assert not info.unexpected_keys and not getattr(info, "mismatched_keys", None)
    # PEFT's own report, before transformers 5.18, names the weights of the base too
    assert not [name for name in info.missing_keys if re.search("lora_|modules_to_save|trainable_tokens", name)]
    expected = load_file("expected.safetensors")
    assert (expected["lora"] - expected["full"]).abs().max() > 0.01
    merge("lora", "merged")
    merged, unfit = load(checkpoint / "merged")
    assert not unfit
    for each in (model.eval(), merged):
        torch.testing.assert_close(next_logits(each, checkpoint), expected["lora"], rtol=1e-4, atol=1e-5)
    alone = AutoModelForImageTextToText.from_pretrained("lora").eval()
    assert torch.equal(next_logits(alone, checkpoint), next_logits(model, checkpoint))


@pytest.mark.parametrize("name", ["full/model.safetensors", "lora/adapter_model.safetensors"])
def test_names_are_still_saved_as_they_were_loaded(name, checkpoint):
    folder = name.split("/")[0]
    if folder == "lora" and Version(peft.__version__) < Version(MIN_PEFT_VERSION):
        pytest.skip(f"this transformers saves a loaded adapter with PEFT {MIN_PEFT_VERSION} or newer only")
    AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(f"{folder}_again")
    before, after = load_file(name), load_file(name.replace("/", "_again/"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("part", ["multi_modal_projector", "vision_tower", "language_model"])
def test_a_renamed_tensor_would_be_found(checkpoint, part):
    """The control of the tests above."""
    path = checkpoint / "full/model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if part in name)
    save_file({key.replace(name, f"{name}_old"): tensor for key, tensor in tensors.items()}, path, {"format": "pt"})
    _, unfit = load(checkpoint / "full")
    assert unfit == {"missing_keys": {name}, "unexpected_keys": {f"{name}_old"}}
