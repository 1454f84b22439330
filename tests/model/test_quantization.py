"""Quantised loading, bitsandbytes and torchao: the LLM alone, whatever else the caller keeps whole."""

import conversations
import pytest
import tiny
import torch
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText, BitsAndBytesConfig, MistralConfig, TorchAoConfig

from omnifusion_hf.model import modeling_omnifusion


pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes; quantisation was not tested")
quantization = pytest.importorskip("torchao.quantization", reason="pip install torchao; quantisation was not tested")


INT8, DYNAMIC = quantization.Int8WeightOnlyConfig(version=2), quantization.Int8DynamicActivationInt8WeightConfig()
INT4 = quantization.IntxWeightOnlyConfig(torch.int4, quantization.PerGroup(32))  # Int4WeightOnlyConfig wants a GPU
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
METHODS = {
    "bitsandbytes 8-bit": lambda skip: BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip),
    "bitsandbytes 4-bit": lambda skip: BitsAndBytesConfig(**NF4, llm_int8_skip_modules=skip),
    "torchao int8": lambda skip: TorchAoConfig(INT8, modules_to_not_convert=skip),
    "torchao int8, activations too": lambda skip: TorchAoConfig(DYNAMIC, modules_to_not_convert=skip),
    "torchao int4": lambda skip: TorchAoConfig(INT4, modules_to_not_convert=skip),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose LLM is 64 wide: 4-bit weights come in blocks of 64."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = MistralConfig(**sizes, num_key_value_heads=4, vocab_size=512, initializer_range=0.2)
    return conversations.write_model(tmp_path_factory.mktemp("model"), text=text)


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def quantised(model: nn.Module) -> set[str]:
    """Layers of another class than `Linear`, or with a weight of another class than `Tensor`."""
    plain = (nn.Linear, torch.Tensor)
    return {name for name, part in linears(model).items() if (type(part), type(part.weight.data)) != plain}


@pytest.mark.parametrize("skip", [None, ["q_proj"]])
@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_llm_alone_is_quantised_and_a_list_of_ones_own_is_added(method, skip, as_dict, folder, tmp_path):
    wanted = METHODS[method](skip)
    given = wanted.to_dict() if as_dict else wanted
    before = wanted.to_dict()
    model, headless = (
        auto.from_pretrained(folder, quantization_config=given, device_map="cpu")
        for auto in (AutoModelForImageTextToText, AutoModel)
    )
    llm = {name for name in linears(model) if "language_model" in name and not (skip and "q_proj" in name)}
    assert quantised(model) == llm == {f"model.{name}" for name in quantised(headless)} != set()
    assert wanted.to_dict() == before  # the caller's object is as it was
    inputs = tiny.prompt(tiny.processor(model.config), [tiny.user(tiny.image(), "What?")])
    assert tiny.answers(model, inputs, 2).shape == (1, 2)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert quantised(loaded) == llm
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("method", METHODS)
def test_control_transformers_own_defaults_reach_adapter_and_head(method, folder, monkeypatch):
    monkeypatch.setattr(modeling_omnifusion, "quantise_only_the_llm", lambda config: config)
    monkeypatch.setattr(modeling_omnifusion.OmniFusionPreTrainedModel, "_keep_in_fp32_modules", None)
    wanted = METHODS[method](["q_proj"])
    model = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=wanted, device_map="cpu")
    parts = {name.removeprefix("model.").split(".")[0] for name in quantised(model)}
    assert parts == {"vision_tower", "multi_modal_projector", "language_model", "lm_head"}
    assert any("q_proj" in name for name in quantised(model)) == method.startswith("torchao")


def test_a_method_without_such_a_list_is_left_as_it_is():
    wanted = BitsAndBytesConfig(load_in_4bit=True)
    del wanted.llm_int8_skip_modules
    assert modeling_omnifusion.quantise_only_the_llm(wanted).to_dict() == wanted.to_dict()
