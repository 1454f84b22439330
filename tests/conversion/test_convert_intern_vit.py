"""InternViT's published sizes; features and refusals are in test_encoders.py."""

import json

import torch
from published import InternVit
from transformers import AutoModel

from conversion.convert_intern_vit import KEYS, vision_config
from conversion.weights import WrittenTensors


def test_the_6b_fits_at_its_real_size_by_the_authors_defaults(tmp_path):
    """Names and shapes, without memory for them; of V1-2's settings only those that differ from the defaults."""
    given = {"model_type": "intern_vit_6b", "num_hidden_layers": 45, "image_size": 448}
    (tmp_path / "config.json").write_text(json.dumps(given))
    config = vision_config(tmp_path)
    with torch.device("meta"):
        encoder = AutoModel.from_config(config)
    full = InternVit.CONFIG | given | {"hidden_size": 3200, "intermediate_size": 12800, "patch_size": 14}
    entries = WrittenTensors({name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()})
    for name, shape in InternVit.shapes(full).items():
        entries.add(dict(KEYS.place(name, torch.empty(shape, device="meta"), "")), "")
    entries.check_complete()
    assert (config.norm_type, config.use_qk_norm, config.num_attention_heads) == ("rms_norm", True, 25)
    assert 5.5e9 < sum(parameter.numel() for parameter in encoder.parameters()) < 5.6e9
