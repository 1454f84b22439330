"""The configuration: invalid mixes raise when it is made, and what is saved is what comes back."""

import pytest
import tiny
from transformers import AutoConfig, CLIPConfig, LlamaConfig

from omnifusion_hf import OmniFusionConfig, OmniFusionVisionConfig


NOT_SQUARE = {"model_type": "siglip_vision_model", "image_size": [32, 48]}
BAD_VISION = [
    ({"encoder_configs": []}, "is empty"),
    ({"encoder_configs": [CLIPConfig()]}, "`clip` is not supported.*vision_config"),
    ({"encoder_configs": [LlamaConfig()]}, "`llama` is not supported.*vision_config"),
    ({"encoder_configs": [NOT_SQUARE]}, "must be square"),
    ({"image_normalizations": [None, None]}, "image_normalizations has 2 entries for 1 encoders"),
]
BAD = [
    ({"image_sizes": [32, 32]}, "image_sizes has 2 entries for 1 encoders"),
    ({"image_sizes": [30]}, "30 .*not a multiple of its patch size 8; use 24 or 32"),
    ({"image_sizes": [0]}, "image size 0 .*patch size 8; use 8 or 16"),
    ({"image_sizes": [-32]}, "image size -32 .*use 8 or 16"),
    ({"vision_feature_layer": [-2, -2]}, "vision_feature_layer has 2 entries for 1"),
    ({"vision_feature_layer": 4}, "has 3 layers; use -4 to 3"),
    ({"encoders": ("swin",), "vision_feature_layer": -2}, "use -1"),
    ({"encoders": ("clip", "dinov2"), "encoder_sizes": [32, 48]}, r"give \[16, 36\] tokens per view"),
    ({"projector_type": "summation", "vision_feature_layer": -2}, "read all layers.*omit"),
    ({"vision_feature_layer": "all"}, "the others one layer of each encoder"),
    ({"encoders": ("clip", "swin"), "projector_type": "attention"}, "donut-swin.*changes its grid.*use mlp"),
    ({"projector_type": "attention", "projector_num_queries": 0}, "num_queries must be 1 or more, got 0"),
    ({"projector_num_attention_heads": -4}, "heads must be 1 or more, got -4"),
    ({"projector_intermediate_size": 0}, "intermediate_size must be 1 or more, got 0"),
    ({"projector_dropout": 1}, "dropout must be at least 0 and below 1, got 1"),
    ({"projector_dropout": -0.1}, "dropout must be at least 0 and below 1, got -0.1"),
    ({"text": tiny.text_config(vocab_size=402)}, "different rows of the vocabulary of 402"),
    ({"projector_type": "linear"}, "projector_type"),
]
for kind in ("transformer", "concatenation", "attention"):
    BAD.append(({"projector_type": kind, "projector_num_attention_heads": 5}, "a divisor of 32"))
BAD += [({"predicted_vocab_size": rows}, f"1 to the 512 rows .*; got {rows}") for rows in (0, -1, 513, 10**9)]
BAD_IDS = [({"user_token_id": row}, "must be 5 different rows of the vocabulary of 512") for row in (400, -1, 512)]
MAKE = (OmniFusionVisionConfig, tiny.config, lambda **ids: OmniFusionConfig(**tiny.config().to_dict() | ids))


@pytest.mark.parametrize(
    "make, fields, said", [(make, *row) for make, rows in zip(MAKE, (BAD_VISION, BAD, BAD_IDS)) for row in rows]
)
def test_invalid_mixes_raise_and_say_what_to_do(make, fields, said):
    with pytest.raises(Exception, match=said) as error:
        make(**fields)
    assert isinstance(error.value, ValueError) or isinstance(error.value.__cause__, (ValueError, TypeError))


LIMITS = [("predicted_vocab_size", rows) for rows in (1, 400, 512, None)]
LIMITS += [("user_token_id", 0), ("user_token_id", 511), ("projector_dropout", 0), ("projector_num_queries", 1)]


@pytest.mark.parametrize("name, value", LIMITS)
def test_the_first_and_the_last_valid_number_are_taken(name, value):
    config = OmniFusionConfig(**tiny.config().to_dict() | {name: value})
    assert getattr(config, name) == value


DEFAULTS = {"projector_type": "mlp", "projector_num_attention_heads": 4, "projector_intermediate_size": 2048}
DEFAULTS |= {"projector_dropout": 0.1, "projector_num_queries": 576, "vision_feature_layer": [-2]}
DEFAULTS |= {"vision_feature_select_strategy": "default", "predicted_vocab_size": None, "tie_word_embeddings": False}
DEFAULTS |= {"special_token_ids": [32000, 32001, 32002, 32003, 32004], "image_seq_length": 576}
CLIP_L_336 = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "hidden_size": 1024}
CLIP_L_336 |= {"intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}


def test_the_defaults_are_the_papers_encoder_a_mistral_and_the_adapter_of_v1_1():
    config = OmniFusionConfig()
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    [encoder] = config.vision_config.encoder_configs
    assert {name: getattr(encoder, name) for name in CLIP_L_336} == CLIP_L_336
    assert (config.text_config.model_type, config.text_config.vocab_size) == ("mistral", 32064)


def test_each_family_has_its_layer_and_one_layer_is_meant_for_every_encoder():
    assert tiny.config(("clip", "internvl", "swin"), image_sizes=[32] * 3).vision_feature_layer == [-2, -1, -1]
    assert tiny.config(("clip", "dinov2"), vision_feature_layer=-1).vision_feature_layer == [-1, -1]


@pytest.mark.parametrize(
    "projector_type, tokens", [("concatenation", 16 + 36 + 16), ("summation", 36), ("attention", 576)]
)
def test_encoders_of_different_length_mix_where_the_formula_allows_it(projector_type, tokens):
    mix = {"encoders": ("clip", "dinov2", "siglip"), "encoder_sizes": [32, 48, 32]}
    config = tiny.config(**mix, projector_type=projector_type)
    assert config.image_seq_length == tokens
    assert config.vision_feature_layer == ([-2] * 3 if projector_type == "concatenation" else "all")
    for needs_equal in ("mlp", "transformer"):
        with pytest.raises(ValueError, match=r"\[16, 36, 16\] tokens per view.*or use concatenation"):
            tiny.config(**mix, projector_type=needs_equal)


def test_save_and_load_keeps_every_field_without_noise_and_machine_paths(tmp_path):
    fields = {"projector_type": "transformer", "image_sizes": [32, 32], "vision_feature_layer": [1, -1]}
    config = tiny.config(("clip", "swin"), **fields)
    config.save_pretrained(tmp_path)
    reloaded = AutoConfig.from_pretrained(tmp_path)
    assert type(reloaded) is OmniFusionConfig
    differ = {"auto_map": None, "_name_or_path": None}
    assert reloaded.to_dict() | differ == config.to_dict() | differ
    parts, again = (one.vision_config.encoder_configs for one in (config, reloaded))
    assert [part.to_dict() for part in parts] == [part.to_dict() for part in again]
    text = (tmp_path / "config.json").read_text()
    assert "clip_vision_model" in text and "_name_or_path" not in text and "id2label" not in text
