"""Tiny random LLMs of many families, as folders that one could have downloaded."""

from pathlib import Path

import tiny
import torch
import transformers

from omnifusion_hf import OmniFusionForConditionalGeneration


def assembled(vision: Path, text: Path, **options) -> OmniFusionForConditionalGeneration:
    torch.manual_seed(3)
    return OmniFusionForConditionalGeneration.from_vision_text_pretrained([vision], text, **options)


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
# Families whose configuration needs sizes alone. Fields that a class lacks are left out.
PLAIN = """
afmoe apertus arcee bitnet cohere2_moe cwm diffllama doge dots1 ernie4_5 ernie4_5_moe exaone4 falcon falcon_h1
flex_olmo glm glm4 glm4_moe gpt_bigcode gpt_oss granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe
jetmoe lfm2 llama4_text mamba2 minimax_m2 ministral ministral3 mixtral mpt nemotron olmo olmo2 olmo3 olmo_hybrid olmoe
persimmon phi3 phimoe qwen2_moe qwen3_moe seed_oss smollm3 stablelm starcoder2 vaultgemma xglm
""".split()
EVERY_SIZE = GATED | {"head_dim": 8, "pad_token_id": 0, "sliding_window": 8, "moe_intermediate_size": 16}
EVERY_SIZE |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "d_model": 32, "n_layers": 2, "n_heads": 4}
EVERY_SIZE |= dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4) | {"n_shared_experts": 1}
EVERY_SIZE |= {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "ffn_dim": 64}
EVERY_SIZE |= {"shared_expert_intermediate_size": 16, "intermediate_size_mlp": 64, "num_heads": 8, "n_groups": 1}
EVERY_SIZE |= {"state_size": 8, "expand": 2, "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8}
EVERY_SIZE |= {"mamba_n_groups": 1, "mamba_expand": 2, "mamba_d_ssm": 64, "linear_num_key_heads": 2}
EVERY_SIZE |= {"linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
EVERY_SIZE |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB, "num_kv_shared_layers": 0}

# Stand-ins for templates that LLMs bring
INST = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content | trim }} [/INST]"
    "{% else %} {{ message.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
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


def plain_config(family: str, **changes) -> transformers.PreTrainedConfig:
    config_class = transformers.CONFIG_MAPPING[family]
    known = config_class.__dataclass_fields__.keys() | config_class.attribute_map
    return config_class(**{name: size for name, size in EVERY_SIZE.items() if name in known} | changes)


def save(folder: Path, family: str, tied: bool = False, chat_template: str | None = None, **tokenizer) -> Path:
    """Saves an LLM and its tokenizer; `tokenizer` are arguments of tiny.llm_tokenizer."""
    config_class, fields = FAMILIES[family]
    return save_config(folder, config_class(**fields, tie_word_embeddings=tied), chat_template, **tokenizer)


def save_config(
    folder: Path, config: transformers.PreTrainedConfig, chat_template: str | None = None, **tokenizer
) -> Path:
    """The same for a configuration, of a multimodal model too."""
    is_text = config.get_text_config() is config
    kind = transformers.AutoModelForCausalLM if is_text else transformers.AutoModelForImageTextToText
    torch.manual_seed(1)
    llm = kind.from_config(config)
    for parameter in llm.parameters():  # some families start biases and their like at 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    llm.save_pretrained(folder)
    made = tiny.llm_tokenizer(**tokenizer)
    made.chat_template = chat_template
    made.save_pretrained(folder)
    return folder
