"""Texify's encoder as transformers' Donut-Swin: features equal those of the encoder-decoder; variants are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    DonutSwinConfig,
    DonutSwinModel,
    MBartConfig,
    MBartForCausalLM,
    VisionEncoderDecoderModel,
)

from conversion.convert_texify import convert, vision_config
from omnifusion_hf import OmniFusionVisionModel
from omnifusion_hf.build.assemble import assemble_vision_config
from omnifusion_hf.cli import main
from omnifusion_hf.model.configuration_omnifusion import OmniFusionVisionConfig


SIZE = 60
SWIN = {"image_size": [SIZE, SIZE], "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
SWIN |= {"window_size": 5, "layer_norm_eps": 1e-3}
# as in the published preprocessor_config.json, whose image processor is a class of the package texify
PREPROCESSING = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PREPROCESSING |= {"image_processor_type": "VariableDonutImageProcessor", "size": {"height": SIZE, "width": SIZE}}


def write_folder(folder: Path, **swin) -> VisionEncoderDecoderModel:
    """An encoder-decoder of transformers' own classes, which Texify's derive from; no parameter at zero or one."""
    torch.manual_seed(0)
    encoder = DonutSwinModel(DonutSwinConfig(**SWIN | swin))
    decoder = {"vocab_size": 50, "d_model": 16, "decoder_layers": 1, "encoder_layers": 1, "is_decoder": True}
    decoder |= {"decoder_ffn_dim": 16, "decoder_attention_heads": 2, "add_cross_attention": True}
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=MBartForCausalLM(MBartConfig(**decoder))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return model


def edit(folder: Path, **encoder) -> Path:
    """Sets fields of the encoder in config.json."""
    config = json.loads((folder / "config.json").read_text())
    config["encoder"] |= encoder
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def pixels(size: int = SIZE) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(model: VisionEncoderDecoderModel, folder: Path, size: int = SIZE) -> float:
    """Largest absolute difference over all stages."""
    expected = model.encoder(pixels(size), output_hidden_states=True).hidden_states
    found = AutoModel.from_pretrained(folder).eval()(pixels(size), output_hidden_states=True).hidden_states
    assert len(found) == len(expected) == 3
    return max((a - b).abs().max().item() for a, b in zip(found, expected))


@pytest.mark.parametrize("variant", [{}, {"qkv_bias": False, "hidden_act": "relu", "window_size": 3}])
@pytest.mark.parametrize("size", [SIZE, 84])
def test_features_equal_those_of_the_original(variant, size, tmp_path):
    model = write_folder(tmp_path / "source", **variant)
    assert difference(model, convert(str(tmp_path / "source"), str(tmp_path / "out")), size) <= 1e-5


WRONG = {
    "another eps": lambda folder: edit(folder, layer_norm_eps=0.1),
    "another activation": lambda folder: edit(folder, hidden_act="relu"),
    "query and value swapped": lambda folder: swap(folder, "encoder.encoder.layers.0.blocks.0.attention.self."),
}


def swap(folder: Path, attention: str):
    tensors = load_file(folder / "model.safetensors")
    query, value = (attention + f"{part}.weight" for part in ("query", "value"))
    tensors[query], tensors[value] = tensors[value], tensors[query]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("mistake", WRONG)
def test_the_comparison_sees_a_wrong_conversion(mistake, tmp_path):
    """Control: each would be the mistake of a converter, and none passes the bound."""
    model = write_folder(tmp_path / "source")
    WRONG[mistake](tmp_path / "source")
    assert difference(model, convert(str(tmp_path / "source"), str(tmp_path / "out"))) > 1e-3


def test_the_folder_is_an_encoder_here(tmp_path):
    model = write_folder(tmp_path / "source")
    folder = convert(str(tmp_path / "source"), str(tmp_path / "out"))
    config = assemble_vision_config([str(folder)])
    assert config.image_normalizations == [{key: PREPROCESSING[key] for key in ("image_mean", "image_std")}]
    assert config.image_sizes == [SIZE] and config.num_patches(0) == 64
    tower = OmniFusionVisionModel(config, [-1]).eval()
    assert tower.encoders[0].load_state_dict(AutoModel.from_pretrained(folder).state_dict()).missing_keys == []
    with torch.no_grad():
        [features] = tower(pixels()).features
        expected = model.encoder(pixels())
    torch.testing.assert_close(features, expected.last_hidden_state, atol=1e-5, rtol=0)
    assert not torch.allclose(features, expected.last_hidden_state.flip(1), atol=1e-2)
    assert list(AutoImageProcessor.from_pretrained(folder).image_mean) == PREPROCESSING["image_mean"]


def test_texify_at_its_real_size_gives_196_tokens_of_1024(tmp_path):
    """420 x 420 pixels in patches of 4; each of the first three stages halves a grid of 105, rounding up."""
    encoder = {"model_type": "donut-swin", "image_size": [420, 420], "patch_size": 4, "embed_dim": 128}
    encoder |= {"depths": [2, 2, 14, 2], "num_heads": [4, 8, 16, 32], "window_size": 5, "use_2d_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps({"encoder": encoder}))
    config = OmniFusionVisionConfig(encoder_configs=[vision_config(tmp_path)])
    assert (config.image_sizes, config.num_patches(0), config.hidden_sizes) == ([420], 196, [1024])


def test_an_encoder_of_oblong_images_needs_a_side_of_its_own(tmp_path):
    """Donut's are 2560 x 1920; a Swin without position embeddings takes any size."""
    model = write_folder(tmp_path / "source", image_size=[80, SIZE])
    folder = convert(str(tmp_path / "source"), str(tmp_path / "out"))
    assert difference(model, folder) <= 1e-5
    with pytest.raises(ValueError, match="image_size must be square"):
        assemble_vision_config([str(folder)])
    assert assemble_vision_config([str(folder)], image_sizes=[SIZE]).num_patches(0) == 64


@pytest.mark.parametrize("setting", ["use_absolute_embeddings", "use_2d_embeddings"])
def test_position_embeddings_are_refused(setting, tmp_path, capsys):
    write_folder(tmp_path / "source")
    edit(tmp_path / "source", **{setting: True})
    assert main(["convert", "texify", "--source", str(tmp_path / "source"), "--output", str(tmp_path / "out")]) == 2
    assert f"{setting}=true" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_transformers_cannot_run_the_absolute_table():
    """The reason for refusing it; once this fails, the table can be mapped."""
    model = DonutSwinModel(DonutSwinConfig(**SWIN, use_absolute_embeddings=True))
    with pytest.raises(RuntimeError, match="must match the size"):
        model(pixels())


BROKEN = {
    "unknown": (lambda t: t.update({"encoder.bonus": torch.zeros(1)}), "unknown tensor `encoder.bonus`"),
    "unknown in a block": (
        lambda t: t.update({"encoder.encoder.layers.0.blocks.0.bonus": torch.zeros(1)}),
        "`encoder.layers.0.blocks.0.bonus` is not a tensor of the model",
    ),
    "missing": (lambda t: t.pop("encoder.embeddings.norm.bias"), "`embeddings.norm.bias`"),
    "misshapen": (
        lambda t: t.update({"encoder.embeddings.norm.bias": torch.zeros(17)}),
        r"`embeddings.norm.bias` has shape \(17,\)",
    ),
    "position embeddings": (
        lambda t: t.update({"encoder.embeddings.row_embeddings": torch.zeros(1, 16, 16)}),
        "unknown tensor `encoder.embeddings.row_embeddings`",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_every_tensor_is_accounted_for(case, tmp_path):
    change, message = BROKEN[case]
    write_folder(tmp_path / "source")
    tensors = load_file(tmp_path / "source/model.safetensors")
    assert any(name.startswith("decoder.") for name in tensors)  # dropped
    change(tensors)
    save_file(tensors, tmp_path / "source/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        convert(str(tmp_path / "source"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_encoder_of_another_type_is_named(tmp_path):
    write_folder(tmp_path / "source")
    edit(tmp_path / "source", model_type="vit")
    with pytest.raises(ValueError, match="has the encoder `vit`"):
        convert(str(tmp_path / "source"), str(tmp_path / "out"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_a_dtype_leaves_integer_buffers_as_they_are(dtype, tmp_path):
    """Of Swin's windows: a buffer of integers, whatever the weights are stored in."""
    write_folder(tmp_path / "source")
    folder = convert(str(tmp_path / "source"), str(tmp_path / "out"), dtype)
    dtypes = {tensor.dtype for tensor in load_file(folder / "model-00001-of-00001.safetensors").values()}
    assert dtypes == {dtype or torch.float32, torch.int64}
    assert AutoModel.from_pretrained(folder).dtype is (dtype or torch.float32)
