"""Requirements of vLLM's Transformers backend on a model package; the tests in with_vllm/ run vLLM itself."""

import json
from importlib.metadata import entry_points

import pytest
import tiny
import torch
from torch import nn
from transformers import AutoModel, AutoProcessor, ProcessorMixin

from omnifusion_hf import OmniFusionModel
from omnifusion_hf.serving import vllm_plugin


SIZES = [(40, 60), (1, 1), (16, 700), (900, 11), (333, 333)]
MIXES = {
    "mlp": {"encoders": ("clip",)},
    "swin": {"encoders": ("swin",)},
    "transformer": {"encoders": ("clip", "siglip"), "projector_type": "transformer"},
    "concatenation": {"encoders": ("clip", "dinov2"), "projector_type": "concatenation"},
    "summation": {"encoders": ("clip", "dinov2"), "projector_type": "summation", "image_sizes": [32, 48]},
    "attention": {"encoders": ("siglip", "internvl"), "projector_type": "attention", "projector_num_queries": 1},
}


@pytest.fixture(params=MIXES)
def mixed(request) -> OmniFusionModel:
    """The model that vLLM builds: without the head."""
    return tiny.model(tiny.config(**MIXES[request.param])).model


def test_the_installed_package_has_the_entry_point_of_vllm():
    ours, others = (entry_points(group="vllm.general_plugins", name=name) for name in ("omnifusion", "another"))
    assert [entry.load() for entry in ours] == [vllm_plugin.register] and not others


def test_a_saved_folder_names_the_classes_that_vllm_needs(model_folder):
    config = json.loads((model_folder / "config.json").read_text())
    assert config["architectures"] == [vllm_plugin.ARCHITECTURE]
    assert config["auto_map"]["AutoModel"].endswith(".OmniFusionModel")
    assert {"AutoConfig", "AutoModelForImageTextToText"} <= config["auto_map"].keys()
    processor_config = json.loads((model_folder / "processor_config.json").read_text())
    assert processor_config["auto_map"] == {"AutoProcessor": "processing_omnifusion.OmniFusionProcessor"}
    headless = AutoModel.from_pretrained(model_folder)
    assert type(headless) is OmniFusionModel and hasattr(headless, "language_model")
    assert headless._can_set_attn_implementation() and headless.is_backend_compatible()


def test_every_field_of_images_has_a_row_for_each_of_the_views_that_are_planned(model, grid_processor, tmp_path):
    """vLLM cuts the fields by these counts."""
    grid_processor.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, ProcessorMixin) and processor.image_token_ids == [model.config.image_token_id]
    planned = processor._get_num_multimodal_tokens(image_sizes=SIZES)["num_image_patches"]
    for size, num_views in zip(SIZES, planned, strict=True):
        inputs = processor(text="<image>", images=tiny.image(0, size), return_tensors="pt")
        assert {len(inputs[name]) for name in processor.image_processor.model_input_names} == {num_views}
    assert len(set(planned)) > 1  # control: tiles differ in number


def test_image_tokens_are_the_most_frequent_of_an_image(mixed):
    """By this vLLM tells features from the marks around them, even for an image of one token."""
    processor = tiny.processor(mixed.config)
    inputs = processor(text="<image>", images=tiny.image(), return_tensors="pt", return_text_replacement_offsets=True)
    [[replaced]] = inputs["text_replacement_offsets"]
    ids = processor.tokenizer(replaced["replacement"], return_tensors="pt", add_special_tokens=False)["input_ids"][0]
    assert ids.mode().values == mixed.config.image_token_id


class PackedLinear(nn.Module):
    """A Linear layer as in some serving engines: its weight is not accessible."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = linear.bias
        self.multiply = lambda states: nn.functional.linear(states, linear.weight)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        product = self.multiply(states)
        return product if self.bias is None else product + self.bias


@torch.no_grad()
def test_no_module_reads_a_linear_layers_weight(mixed):
    pixels, index = torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 0])
    expected = mixed.get_image_features(pixels, index, return_dict=True).pooler_output
    for name, module in list(mixed.named_modules()):
        if isinstance(module, nn.Linear) and "language_model" not in name:
            mixed.set_submodule(name, PackedLinear(module))
    packed = mixed.get_image_features(pixels, index, return_dict=True).pooler_output
    assert len(packed[0]) == 2 * len(packed[1])
    torch.testing.assert_close(packed, expected)
    linear = next(module for module in mixed.modules() if isinstance(module, PackedLinear))
    assert not hasattr(linear, "weight")  # control: reading it fails


def test_plans_for_several_devices_name_the_llms_modules(mixed):
    names = {name for name, _ in mixed.named_modules()}
    assert list(mixed._pp_plan) == ["language_model.embed_tokens", "language_model.layers", "language_model.norm"]
    sharded = {plan.replace("*", "0") for plan in mixed.tp_plan}
    assert {"language_model.layers.0.self_attn.q_proj", "language_model.layers.0.mlp.down_proj"} <= sharded
    assert sharded | set(mixed._pp_plan) <= names
    assert not {plan.replace("*", "9") for plan in mixed.tp_plan} <= names  # control: a model has no tenth layer
