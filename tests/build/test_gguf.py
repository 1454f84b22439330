"""GGUF files as LLMs: weights, configuration and tokenizer are those of the file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from omnifusion_hf import OmniFusionForConditionalGeneration
from omnifusion_hf.build import gguf as module
from omnifusion_hf.build.assemble import load_llm
from omnifusion_hf.build.build import check_exists
from omnifusion_hf.build.tokenization import load_tokenizer


gguf = pytest.importorskip("gguf", reason="reads and writes GGUF files: omnifusion_hf[gguf]")
WIDTH, LAYERS, HIDDEN = 64, 2, 96
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *LETTERS, "12"]


SHAPES = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH))
SHAPES |= {"ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN)}
SHAPES |= {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
FIELDS = {"context_length": 256, "embedding_length": WIDTH, "block_count": LAYERS, "feed_forward_length": HIDDEN}
FIELDS |= {"head_count": 4, "head_count_kv": 4, "layer_norm_rms_eps": 1e-5, "vocab_size": len(TOKENS)}
FIELDS |= {"tokenizer_model": "gpt2", "tokenizer_pre": "smollm", "token_list": TOKENS, "token_merges": ["1 2"]}
FIELDS |= {"token_types": [3] * 3 + [1] * (len(TOKENS) - 3), "unk_token_id": 0, "bos_token_id": 1}
FIELDS |= {"eos_token_id": 2, "pad_token_id": 2}


def write(path: Path, **fields) -> Path:
    """A Llama of random weights whose tokenizer has `12` as a token."""
    writer, random = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    for name, value in (FIELDS | fields).items():
        getattr(writer, f"add_{name}")(value)
    tensors = {f"blk.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in SHAPES.items()}
    tensors |= {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,)}
    for name, shape in tensors.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, dtype=np.float32) * 0.1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Its tokenizer splits digits before BPE."""
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_the_tokenizer_splits_digits_as_the_file_says_or_is_refused(file, tmp_path):
    assert load_tokenizer(file).tokenize("a12") == ["a", "1", "2"]
    assert load_tokenizer(write(tmp_path / "x.gguf", tokenizer_pre="gpt-2")).tokenize("a12") == ["a", "12"]  # control
    with pytest.raises(ValueError, match="x.gguf splits text as `deepseek-llm`, which .*; update transformers, or"):
        load_tokenizer(write(tmp_path / "x.gguf", tokenizer_pre="deepseek-llm"))


def test_an_assembled_model_answers_text_as_the_file_does_and_is_saved(file, parts, tmp_path):
    model = OmniFusionForConditionalGeneration.from_vision_text_pretrained([str(parts / "clip")], str(file))
    llm = load_llm(str(file), model.config.text_config.vocab_size, "float32")
    embeddings = {each.name: each for each in gguf.GGUFReader(file).tensors}["token_embd.weight"].data
    np.testing.assert_array_equal(llm.get_input_embeddings().weight[: len(TOKENS)].detach(), embeddings)
    assert not hasattr(llm.config, "quantization_config") and llm.config.num_hidden_layers == LAYERS
    ids = torch.arange(3, 40).unsqueeze(0)
    logits = model(ids).logits
    assert torch.equal(logits[..., : len(TOKENS)], llm(ids).logits[..., : len(TOKENS)])
    model.save_pretrained(tmp_path)
    assert torch.equal(OmniFusionForConditionalGeneration.from_pretrained(tmp_path)(ids).logits, logits)


def test_without_the_package_the_error_names_it(file, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    for reads in (load_tokenizer, check_exists):
        with pytest.raises(ValueError, match=r"GGUF files needs the package gguf: pip install '.*\[gguf\]'"):
            reads(str(file))
