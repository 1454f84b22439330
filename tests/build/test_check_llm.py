"""Which LLMs can be behind an adapter: fifty families, language parts of multimodal models; why others cannot."""

import llms
import pytest
import torch
import transformers
from llms import assembled

from omnifusion_hf import OmniFusionForConditionalGeneration


IDS = torch.arange(5, 25).view(2, 10)
VIT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
VIT |= {"image_size": 32}
LLAMA = transformers.LlamaConfig(**llms.GATED)
SCALED = {"embedding_multiplier": 2.0}  # outside of the embedding table


def known(families: list[str]) -> list[str]:
    return [family for family in families if family in transformers.CONFIG_MAPPING]


@torch.no_grad()
def assert_answers_as(llm, parts, text):
    """Before and after it is saved."""
    model = assembled(parts / "clip", text)
    logits = model(IDS).logits
    torch.testing.assert_close(logits[..., : llms.VOCAB], llm.eval()(IDS).logits, atol=1e-5, rtol=1e-5)
    model.save_pretrained(text.parent / "saved")
    reloaded = OmniFusionForConditionalGeneration.from_pretrained(text.parent / "saved")
    torch.testing.assert_close(reloaded(IDS).logits, logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", known(llms.PLAIN))
def test_an_assembled_model_answers_as_its_llm_and_reloads_equal(family, parts, tmp_path):
    text = llms.save_config(tmp_path / "llm", llms.plain_config(family))
    assert_answers_as(transformers.AutoModelForCausalLM.from_pretrained(text), parts, text)


def test_an_llm_of_bfloat16_is_not_refused_for_the_rounding_of_other_kernels(parts, tmp_path):
    """From a width of 2048 on, a token with a cache rounds otherwise than a whole sequence."""
    config = transformers.LlamaConfig(**llms.GATED | {"hidden_size": 2048, "intermediate_size": 256})
    text = llms.save_config(tmp_path / "llm", config)
    transformers.AutoModelForCausalLM.from_pretrained(text, dtype=torch.bfloat16).save_pretrained(text)
    assert assembled(parts / "clip", text, dtype="auto").dtype == torch.bfloat16


VISION, PAIRS = transformers.CLIPVisionConfig(**VIT), {"image_size": [32, 32], "patch_size": [8, 8]}
MULTIMODAL = {
    "llava": lambda: transformers.LlavaConfig(text_config=LLAMA, vision_config=VISION),
    "gemma3": lambda: transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**llms.GEMMA),
        vision_config=transformers.SiglipVisionConfig(**VIT),
        mm_tokens_per_image=4,
    ),
    "mistral3": lambda: transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**llms.GATED), vision_config=transformers.PixtralVisionConfig(**VIT)
    ),
    "internvl": lambda: transformers.InternVLConfig(text_config=LLAMA, vision_config=VIT | PAIRS),
    "qwen2_5_vl": lambda: transformers.Qwen2_5_VLConfig(
        text_config=llms.GATED | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32},
    ),
    "llama4": lambda: transformers.Llama4Config(
        text_config=llms.plain_config("llama4_text"),
        vision_config=transformers.Llama4VisionConfig(
            **VIT, vision_output_dim=32, projector_input_dim=32, projector_output_dim=32
        ),
    ),
}


@pytest.mark.parametrize("family", MULTIMODAL)
def test_the_language_part_of_a_multimodal_model_is_an_llm(family, parts, tmp_path):
    text = llms.save_config(tmp_path / "llm", MULTIMODAL[family]())
    whole = transformers.AutoModelForImageTextToText.from_pretrained(text)
    assert_answers_as(whole.language_model if family == "llama4" else whole, parts, text)


REFUSALS = [
    ("gemma3n_text", {}, "does more with ids than a look-up in its table .* visual tokens have no ids"),
    ("falcon_h1", SCALED, "does more with ids than a look-up in its table .* logits differ by"),
    ("mamba", {}, "answers otherwise with a cache: logits differ by"),
    ("gemma4_text", {}, r"treats visual tokens unlike .* \(embeddings in every layer, for one\)"),
    ("rwkv", {"attention_hidden_size": 32}, "answers otherwise with a cache"),
    ("gptj", {"rotary_dim": 4}, "its head adds a bias to the logits"),
    ("bart", {"decoder_attention_heads": 4, "is_decoder": True}, "has no BartModel that could read images"),
    ("phi", {}, "its head adds a bias to the logits"),
    ("hyperclovax", {"logits_scaling": 4.0}, "does more between its last layer .* logits differ"),
]


@pytest.mark.parametrize("family, changes, reason", [each for each in REFUSALS if known(each[:1])])
def test_an_llm_that_would_not_be_itself_is_refused_with_the_reason(family, changes, reason, parts, tmp_path):
    text = llms.save_config(tmp_path, llms.plain_config(family, **changes))
    with pytest.raises(ValueError, match=rf"`?{family}`?.*{reason}.*use another LLM"):
        assembled(parts / "clip", text)
