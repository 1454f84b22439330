"""Tiny random LLMs of many families, as folders that one could have downloaded."""

from pathlib import Path

import tiny
import torch
import transformers


VOCAB = 400  # that of tiny.llm_tokenizer
LIVELY = {"vocab_size": VOCAB, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **LIVELY}
POSITIONS = {"max_position_embeddings": 512}
GATED = {"intermediate_size": 64, "num_key_value_heads": 2, **POSITIONS, **SIZES}
GEMMA = GATED | {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}

# family -> its configuration's class and fields; what the head does beyond a matrix is set so that it shows
FAMILIES = {
    "mistral": (transformers.MistralConfig, GATED),
    "llama": (transformers.LlamaConfig, GATED),
    "qwen2, padded vocabulary": (transformers.Qwen2Config, GATED | {"vocab_size": 480}),
    "qwen3": (transformers.Qwen3Config, GATED | {"head_dim": 8}),
    "gemma": (transformers.GemmaConfig, GATED | {"head_dim": 8}),
    "gemma2": (transformers.Gemma2Config, GEMMA | {"final_logit_softcapping": 2.0}),
    "gemma3": (transformers.Gemma3TextConfig, GEMMA),
    "gpt_neox": (transformers.GPTNeoXConfig, SIZES | POSITIONS | {"intermediate_size": 64}),
    "gpt2": (transformers.GPT2Config, LIVELY | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "opt": (transformers.OPTConfig, SIZES | POSITIONS | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bloom": (transformers.BloomConfig, LIVELY | {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "cohere": (transformers.CohereConfig, GATED | {"logit_scale": 0.25}),
    "cohere2": (transformers.Cohere2Config, GATED | {"logit_scale": 0.25}),
    "granite": (transformers.GraniteConfig, GATED | {"logits_scaling": 4.0, "embedding_multiplier": 6.0}),
}
REFUSED = {
    "phi": (transformers.PhiConfig, SIZES | POSITIONS | {"intermediate_size": 64}),
    "hyperclovax": (transformers.HyperCLOVAXConfig, GATED | {"logits_scaling": 4.0}),
}

CHATML = """
{%- if messages[0]['role'] != 'system' %}<|im_start|>system
You help.<|im_end|>
{% endif %}
{%- for message in messages %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}
"""


def save(folder: Path, family: str, tied: bool = False, chat_template: str | None = None, **tokenizer) -> Path:
    """Saves an LLM and its tokenizer; `tokenizer` are arguments of tiny.llm_tokenizer."""
    config_class, fields = (FAMILIES | REFUSED)[family]
    torch.manual_seed(1)
    llm = transformers.AutoModelForCausalLM.from_config(config_class(**fields, tie_word_embeddings=tied))
    for parameter in llm.parameters():  # some families start biases and their like at 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    llm.save_pretrained(folder)
    made = tiny.llm_tokenizer(**tokenizer)
    made.chat_template = chat_template
    made.save_pretrained(folder)
    return folder
