"""Saved folders: bit-equal round trips, dtypes, buffers, and what a folder holds."""

import json
from unittest.mock import Mock

import pytest
import tiny
import torch
from transformers import AutoModel, AutoModelForImageTextToText

from omnifusion_hf import AutoModelForVision2Seq, OmniFusionForConditionalGeneration, OmniFusionModel


def assert_equal_states(first: torch.nn.Module, second: torch.nn.Module):
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


WHOLE, SHARDS = {}, {"max_shard_size": "100KB"}


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("first, then", [(WHOLE, SHARDS), (SHARDS, WHOLE), (SHARDS, {"max_shard_size": "50KB"})])
def test_of_two_models_saved_to_one_folder_the_second_is_loaded_and_the_first_is_gone(
    model, tmp_path, first, then, variant
):
    other = tiny.model(model.config, seed=1)
    model.save_pretrained(tmp_path, variant="other")
    others = {path.name for path in tmp_path.iterdir()} | {"notes.safetensors"}
    (tmp_path / "notes.safetensors").write_bytes(b"the user's own")
    model.save_pretrained(tmp_path, variant=variant, **first)
    other.save_pretrained(tmp_path, variant=variant, **then)
    assert_equal_states(OmniFusionForConditionalGeneration.from_pretrained(tmp_path, variant=variant), other)
    alone = tmp_path / "alone"
    other.save_pretrained(alone, variant=variant, **then)
    assert {path.name for path in tmp_path.iterdir()} - {"alone"} == others | {path.name for path in alone.iterdir()}


def test_earlier_weights_stay_where_saving_fails(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    fails = Mock(side_effect=OSError("No space left on device"))
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fails)
    with pytest.raises(OSError, match="No space left"):
        tiny.model(model.config, seed=1).save_pretrained(tmp_path, **SHARDS)
    assert_equal_states(OmniFusionForConditionalGeneration.from_pretrained(tmp_path), model)


def test_saving_beside_lora_weights_says_that_these_are_loaded_first(model, tmp_path, caplog):
    (tmp_path / "adapter_config.json").write_text("{}")
    model.save_pretrained(tmp_path)
    assert "has LoRA weights too, which from_pretrained loads" in caplog.text


def test_every_auto_class_opens_the_folder_and_is_named_in_the_map_of_remote_code(
    model, model_folder, processor, tmp_path
):
    for auto in (AutoModelForImageTextToText, AutoModelForVision2Seq):
        assert_equal_states(auto.from_pretrained(model_folder), model)
    assert type(base := AutoModel.from_pretrained(model_folder)) is OmniFusionModel
    assert_equal_states(base, model.model)
    base.save_pretrained(tmp_path)  # of a headless folder as well
    processor.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_omnifusion.OmniFusionConfig",
        "AutoModel": "modeling_omnifusion.OmniFusionModel",
        "AutoModelForImageTextToText": "modeling_omnifusion.OmniFusionForConditionalGeneration",
        "AutoProcessor": "processing_omnifusion.OmniFusionProcessor",
    }
    assert all((tmp_path / f"{name.split('.')[0]}.py").is_file() for name in auto_map.values())
