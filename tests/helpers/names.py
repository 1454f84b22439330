"""Names of what trains, stage by stage, in a tiny model of CLIP and DINOv2, concatenation and Mistral, written out."""

from itertools import product

import transformers
from packaging.version import Version


def each(*pieces: str) -> list[str]:
    """Dotted names: one word of each piece, words in a piece are parted by blanks."""
    return [".".join(words) for words in product(*(piece.split() for piece in pieces))]


CLIP, DINO = "model.vision_tower.encoders.0", "model.vision_tower.encoders.1"
LLM = "model.language_model.layers.0 model.language_model.layers.1"
# each tower has three layers; hidden state -2 needs two of them
CLIP_LAYERS = f"{CLIP}.encoder.layers.0 {CLIP}.encoder.layers.1"
DINO_LAYERS = f"{DINO}.encoder.layer.0 {DINO}.encoder.layer.1"
CLIP_LINEAR = each(CLIP_LAYERS, "self_attn", "q_proj k_proj v_proj out_proj") + each(CLIP_LAYERS, "mlp", "fc1 fc2")
# transformers 5.18 renamed them in memory; files keep the old names
DINO_ATTENTION = ("q_proj k_proj v_proj o_proj", "attention.query attention.key attention.value output.dense")
DINO_LINEAR = [
    *each(DINO_LAYERS, "attention", DINO_ATTENTION[Version(transformers.__version__) < Version("5.18")]),
    *each(DINO_LAYERS, "mlp", "fc1 fc2"),
]
LLM_LINEAR = each(LLM, "self_attn", "q_proj k_proj v_proj o_proj") + each(LLM, "mlp", "gate_proj up_proj down_proj")

WEIGHT_AND_BIAS = "weight bias"
WHOLE_TOWER = [
    *each(f"{CLIP}.embeddings", "class_embedding patch_embedding.weight position_embedding.weight"),
    *each(f"{CLIP}.pre_layrnorm", WEIGHT_AND_BIAS),
    *each(CLIP_LAYERS, "layer_norm1 layer_norm2", WEIGHT_AND_BIAS),
    *each(f"{DINO}.embeddings", "cls_token position_embeddings patch_embeddings.projection.weight"),
    f"{DINO}.embeddings.patch_embeddings.projection.bias",
    *each(DINO_LAYERS, "norm1 norm2", WEIGHT_AND_BIAS),
    *each(DINO_LAYERS, "layer_scale1 layer_scale2", "lambda1"),
    *each(" ".join(CLIP_LINEAR + DINO_LINEAR), WEIGHT_AND_BIAS),
]
WHOLE_LLM = [
    *each("model.language_model", "embed_tokens norm", "weight"),
    *each(LLM, "input_layernorm post_attention_layernorm", "weight"),
    *each(" ".join(LLM_LINEAR), "weight"),
    "lm_head.weight",
]
TRANSFORMER = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj norm1 norm2 linear1 linear2"
PROJECTOR = [
    *each("model.multi_modal_projector", "encoder_linears.0 encoder_linears.1 linear", WEIGHT_AND_BIAS),
    *each("model.multi_modal_projector.transformer_layer", TRANSFORMER, WEIGHT_AND_BIAS),
]
ROWS = "model.language_model.embed_tokens.special_token_rows"
PEFT_ROWS = "base_model.model.model.language_model.embed_tokens.token_adapter.trainable_tokens_delta.default"


def lora(linear: list[str]) -> list[str]:
    """PEFT's names of the two factors of linear layers."""
    return each("base_model.model", " ".join(linear), "lora_A.default.weight lora_B.default.weight")


def copies(names: list[str], part: str) -> list[str]:
    """PEFT's names of a part that it trains as a copy."""
    return [f"base_model.model.{name}".replace(part, f"{part}.modules_to_save.default") for name in names]


def trained(stage: str, vision: str) -> set[str]:
    """What `apply_stage` trains."""
    if stage != "lora" and vision != "lora":
        tower = WHOLE_TOWER if vision == "full" else []
        return {*PROJECTOR, *tower, *(WHOLE_LLM if stage == "finetune" else [ROWS])}
    towers = {"frozen": [], "full": copies(WHOLE_TOWER, "vision_tower"), "lora": lora(CLIP_LINEAR + DINO_LINEAR)}
    llm = lora(LLM_LINEAR) if stage == "lora" else []
    return {*copies(PROJECTOR, "multi_modal_projector"), PEFT_ROWS, *towers[vision], *llm}
