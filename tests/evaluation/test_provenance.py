"""evaluation/provenance.py: hashes tell models and processors apart."""

import pytest
import tiny
import torch

from omnifusion_hf.evaluation.provenance import model_facts, model_hash


CHANGES = {
    "weight": lambda model: model.lm_head.weight.data[0, 0].sub_(1),
    "configuration": lambda model: setattr(model.config, "image_fit", "other"),
    "settings of generate": lambda model: setattr(model.generation_config, "repetition_penalty", 1.5),
    "dtype": lambda model: model.to(torch.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_model_has_another_hash(change):
    model = tiny.model()
    before = model_hash(model)
    assert model_hash(model) == before
    change(model)
    assert model_hash(model) != before


def test_facts_name_the_dtype_and_another_processor(model, processor, grid_processor):
    facts, others = model_facts(model, processor), model_facts(model, grid_processor)
    assert facts["dtype"] == "float32" and facts["model_sha256"] == others["model_sha256"]
    assert facts["processor_sha256"] != others["processor_sha256"]


def test_quantised_weights_change_the_hash():
    torchao = pytest.importorskip("torchao.quantization", reason="pip install torchao; no quantised weight was hashed")
    model = tiny.model()
    torchao.quantize_(model.model.language_model, torchao.Int8WeightOnlyConfig(version=2))
    weights = [weight for weight in model.state_dict().values() if hasattr(weight, "qdata")]
    before = model_hash(model)
    assert weights and model_hash(model) == before
    weights[0].qdata[0, 0] ^= 1
    assert model_hash(model) != before
