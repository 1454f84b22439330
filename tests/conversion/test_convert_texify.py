"""Texify's sizes and position embeddings; features and refusals are in test_encoders.py."""

import json

import pytest
from published import Texify, pixels
from transformers import DonutSwinConfig, DonutSwinModel

from conversion.convert_texify import vision_config
from omnifusion_hf.build.assemble import assemble_vision_config
from omnifusion_hf.model.configuration_omnifusion import OmniFusionVisionConfig


def test_texify_at_its_real_size_gives_196_tokens_of_1024(tmp_path):
    """420 x 420 pixels in patches of 4; each of the first three stages halves a grid of 105, rounding up."""
    encoder = {"model_type": "donut-swin", "image_size": [420, 420], "patch_size": 4, "embed_dim": 128}
    encoder |= {"depths": [2, 2, 14, 2], "num_heads": [4, 8, 16, 32], "window_size": 5, "use_2d_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps({"encoder": encoder}))
    config = OmniFusionVisionConfig(encoder_configs=[vision_config(tmp_path)])
    assert (config.image_sizes, config.num_patches(0), config.hidden_sizes) == ([420], 196, [1024])


def test_an_encoder_of_oblong_images_needs_a_side_of_its_own(tmp_path):
    """Donut's are 2560 x 1920; a Swin without position embeddings takes any size."""
    original = Texify(image_size=[80, 60])
    folder = original.converted(tmp_path)
    assert original.difference(folder) <= 1e-5
    with pytest.raises(ValueError, match="image_size must be square"):
        assemble_vision_config([str(folder)])
    assert assemble_vision_config([str(folder)], image_sizes=[60]).num_patches(0) == 64


def test_transformers_cannot_run_the_absolute_table():
    """The reason for refusing it; once this fails, the table can be mapped."""
    model = DonutSwinModel(DonutSwinConfig(**Texify.SWIN, use_absolute_embeddings=True))
    with pytest.raises(RuntimeError, match="must match the size"):
        model(pixels(60))
