"""A folder with missing, unknown, misshapen or non-finite weights is neither loaded for inference nor pushed."""

from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnifusion_hf import hub
from omnifusion_hf.cli import main
from omnifusion_hf.inference import TINY, load


ADAPTER = "model.multi_modal_projector.linear_1.bias"
CHANGES = {
    "missing": (lambda weights: weights.pop(ADAPTER), "lacks 1 weights"),
    "unknown": (lambda weights: weights.update(another=torch.ones(2)), "config.json lacks .*another"),
    "not a number": (lambda weights: weights[ADAPTER][:1].fill_(float("nan")), f"{ADAPTER} holds NaN or infinity"),
    "infinite": (lambda weights: weights[ADAPTER][-1:].fill_(-float("inf")), f"{ADAPTER} holds NaN or infinity"),
    "whole numbers": (lambda weights: weights.update({ADAPTER: weights[ADAPTER].int()}), f"{ADAPTER} is .* I32"),
    "bytes": (lambda weights: weights.update({ADAPTER: weights[ADAPTER].to(torch.uint8)}), "stored as U8"),
    "another shape": (lambda weights: weights.update({ADAPTER: weights[ADAPTER][:5].clone()}), r"is \(5,\) in"),
}  # fmt: skip


def changed(saved: Path, folder: Path, change=lambda weights: None) -> Path:
    """A copy with other weights, and a card."""
    copytree(saved, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", CHANGES)
def test_broken_weights_are_refused_by_name_by_inference_and_push(kind, model_folder, tmp_path, capsys):
    change, message = CHANGES[kind]
    folder = changed(model_folder, tmp_path / "model", change)
    for load_it in (load, hub.check_folder):
        with pytest.raises(ValueError, match=message):
            load_it(folder)
    good = changed(model_folder, tmp_path / "good")  # control
    hub.check_folder(good)
    for path, code in ((folder, 2), (good, 0)):
        assert main(["ask", "--text-only", "Hello", "--model", str(path)]) == code
    assert f"omnifusion: error: {folder}" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_and_in_shards_are_accepted_if_they_are_whole(dtype, tmp_path):
    model, processor = load(TINY)
    processor.save_pretrained(tmp_path)
    model.to(dtype).save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    load(tmp_path)
    model.get_parameter(ADAPTER).data[0] = float("nan")
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    with pytest.raises(ValueError, match="NaN or infinity"):
        load(tmp_path)
