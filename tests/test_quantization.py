"""Quantised loading: the LLM alone, whatever else the caller keeps whole."""

import pytest
import tiny
import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from omnifusion_hf.modeling_omnifusion import keep_whole


bitsandbytes = pytest.importorskip(
    "bitsandbytes", reason="pip install bitsandbytes; nothing of quantisation was tested"
)


def quantised(model) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear8bitLt)}


def linears(model) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


@pytest.mark.parametrize("skip", [None, ["q_proj"]])
@pytest.mark.parametrize("as_dict", [False, True])
def test_case_22_the_llm_alone_is_quantised_and_a_list_of_ones_own_is_added(skip, as_dict, model_folder, tmp_path):
    wanted = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    given = wanted.to_dict() if as_dict else wanted
    model = AutoModelForImageTextToText.from_pretrained(model_folder, quantization_config=given, device_map="cpu")
    llm = {name for name in linears(model) if "language_model" in name and not (skip and "q_proj" in name)}
    assert quantised(model) == llm and llm
    assert wanted.llm_int8_skip_modules == skip  # the caller's object is as it was

    processor = tiny.processor(model.config)
    inputs = tiny.prompt(processor, [tiny.user(tiny.picture(), "What?")])
    assert model.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert quantised(loaded) == llm
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_case_22_control_transformers_own_defaults_reach_encoders_adapter_and_head(model_folder, monkeypatch):
    monkeypatch.setattr("omnifusion_hf.modeling_omnifusion.keep_whole", lambda config: config)
    wanted = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["q_proj"])
    model = AutoModelForImageTextToText.from_pretrained(model_folder, quantization_config=wanted, device_map="cpu")
    parts = {name.removeprefix("model.").split(".")[0] for name in quantised(model)}
    assert parts == {"vision_tower", "multi_modal_projector", "language_model", "lm_head"}


def test_a_method_without_such_a_list_is_left_as_it_is():
    wanted = BitsAndBytesConfig(load_in_4bit=True)
    del wanted.llm_int8_skip_modules
    assert keep_whole(wanted).to_dict() == wanted.to_dict()
