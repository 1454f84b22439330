"""Inference: the bundled examples are answered from their images; answers stay within the context; one-line errors."""

import pytest
import torch

from omnifusion_hf import inference
from omnifusion_hf.inference import TINY, answer_question, max_new_tokens_within_context


def test_the_bundled_checkpoint_is_small_and_without_pickles():
    files = [path for path in TINY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10e6
    assert not [path for path in files if path.suffix in (".bin", ".pt")]


def room(tokens: int, context: int | None) -> int:
    inputs = {"input_ids": torch.zeros(1, tokens, dtype=torch.long)}
    return max_new_tokens_within_context(inputs, context, max_new_tokens=15)


def test_an_answer_stays_within_the_context_and_a_prompt_that_fills_it_is_refused(demo):
    given = [(90, 100), (99, 100), (80, 100), (85, 100), (5000, None)]
    assert [room(*each) for each in given] == [10, 1, 15, 15, 15]
    with pytest.raises(ValueError, match="takes 100 tokens, but the model's context has 100"):
        room(100, 100)
    with pytest.raises(ValueError, match=r"takes 1\d\d\d tokens, .* has 1024"):
        answer_question(*demo, [], "word " * 1020)


@pytest.mark.parametrize(
    "options, dtype, attention, bits",
    [
        ({"dtype": None}, torch.float32, "sdpa", None),
        ({"dtype": "bfloat16", "attn_implementation": "eager"}, torch.bfloat16, "eager", None),
        ({"quantization": "8bit"}, torch.float32, "sdpa", "8bit"),
        ({"quantization": "4bit", "dtype": "bfloat16"}, torch.bfloat16, "sdpa", "4bit"),
    ],
    ids=["default", "dtype and attention", "8bit", "4bit"],
)
def test_a_model_is_loaded_as_the_options_say(options, dtype, attention, bits):
    pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes; quantisation was not tested")
    model, processor = inference.load(TINY, "cpu", **options)
    assert model.dtype == dtype and model.config.text_config._attn_implementation == attention
    assert [getattr(model, f"is_loaded_in_{b}", False) for b in ("4bit", "8bit")] == [bits == "4bit", bits == "8bit"]
    assert answer_question(model, processor, [TINY / "images/shape-1.png"], "What shape is black?") == "star"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"device": "gpu"}, "no device gpu here; use cpu"),
        ({"device": "cuda:99"}, "no device cuda:99 here"),
        ({"quantization": "3bit"}, "4bit or 8bit, got 3bit"),
        ({"quantization": "8bit", "device": "meta"}, "no 8bit for the device meta; it supports cpu"),
        ({"attn_implementation": "fast"}, 'attn_implementation="fast"` is not supported'),
    ],
)
def test_a_device_quantisation_or_attention_that_is_not_here_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        inference.load(TINY, **options)


def test_quantisation_is_refused_without_bitsandbytes_and_for_a_folder_of_another(monkeypatch, tmp_path):
    for part in inference.load(TINY, "cpu", quantization="8bit"):
        part.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="stored with another quantisation than 4bit"):
        inference.load(tmp_path, "cpu", quantization="4bit")
    assert inference.load(tmp_path, "cpu", quantization="8bit")[0].is_loaded_in_8bit  # control
    monkeypatch.setattr(inference, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"4bit needs bitsandbytes: pip install 'omnifusion_hf\[quantization\]'"):
        inference.load(TINY, quantization="4bit")
