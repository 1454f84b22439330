"""The memory of each GPU, as documented and computed; loading under ZeRO-3; what cannot be sharded."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from transformers import CLIPVisionConfig, MistralConfig, TrainingArguments
from transformers.integrations import deepspeed

from omnifusion_hf import OmniFusionForConditionalGeneration
from omnifusion_hf.training import sharding
from omnifusion_hf.training.sharding import (
    check_sharding,
    is_sharded,
    memory_per_device,
    spread_weights,
    whole_weights,
)
from omnifusion_hf.training.stages import STAGES, apply_stage, parts_of_stage, stage_plan


DOCS = Path(__file__).parents[2] / "docs/training.md"


@pytest.mark.parametrize("stage", STAGES)
def test_memory_is_the_documented_and_what_trains_costs_sixteen_bytes_a_parameter_and_what_autocast_and_ddp_add(stage):
    """Of Mistral-7B with CLIP ViT-L/14-336, without weights."""
    vit = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = tiny.config(text=MistralConfig(vocab_size=32064))
    config.vision_config.encoder_configs = [CLIPVisionConfig(**vit, image_size=336, patch_size=14)]
    with torch.device("meta"):
        model = OmniFusionForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    plans = stage_plan(apply_stage(model, stage))
    pattern = rf"^\| `{stage}` \| ([\w, -]+) \| (\d+) \| ([\d.]+) \|$"
    rows = re.findall(pattern, DOCS.read_text(encoding="utf-8"), re.M)
    assert rows
    for launch, devices, gigabytes in rows:
        memory = memory_per_device(plans, int(devices), sharded="FSDP2" in launch)
        assert f"{memory / 1e9:.1f}" == gigabytes
    if stage == "finetune":
        trained = sum(plan.trained for plan in plans)
        frozen = sum(plan.parameters for plan in plans) - trained
        assert memory_per_device(plans, 1) == 2 * frozen + (16 + 2) * trained
        assert memory_per_device(plans, 8) == 2 * frozen + (16 + 2 + 4) * trained
        assert memory_per_device(plans, 8, sharded=True) == (2 * frozen + 16 * trained) // 8


def config_of_transformers(fields: dict) -> HfDeepSpeedConfig:
    """transformers' own class asks for DeepSpeed to be installed."""
    config = HfDeepSpeedConfig(fields)
    deepspeed.set_hf_deepspeed_config(config)
    return config


def test_weights_are_loaded_whole_under_zero_3_which_is_then_as_before(monkeypatch):
    config = config_of_transformers({"zero_optimization": {"stage": 3}})
    plugin = SimpleNamespace(set_deepspeed_weakref=lambda: deepspeed.set_hf_deepspeed_config(config))
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        monkeypatch.setattr(sharding, "HfDeepSpeedConfig", config_of_transformers)
        with whole_weights(SimpleNamespace(deepspeed_plugin=plugin)):
            assert not deepspeed.is_deepspeed_zero3_enabled()
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_under_zero_3_weights_are_cast_and_handed_to_deepspeed_which_moves_no_whole_model(monkeypatch):
    handed = []
    zero = SimpleNamespace(Init=lambda *args, **options: handed.append((args, options)))
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(zero=zero))
    stage = {"stage": 3, "stage3_prefetch_bucket_size": "auto"}
    plugin = SimpleNamespace(zero_stage=3, hf_ds_config=SimpleNamespace(config={"zero_optimization": stage}))
    model = torch.nn.Linear(2, 2)
    for other in (None, SimpleNamespace(zero_stage=2)):
        spread_weights(model, SimpleNamespace(deepspeed_plugin=other))
    assert not handed and model.weight.dtype == torch.float32
    spread_weights(model, SimpleNamespace(deepspeed_plugin=plugin, bf16=True, fp16=False, world_size=8))
    config = {"zero_optimization": {"stage": 3}, "train_batch_size": 8}
    assert handed == [((model,), {"config_dict_or_path": config, "dtype": torch.bfloat16})]
    assert model.weight.dtype == torch.bfloat16


def test_lora_on_an_llm_with_tied_embeddings_is_refused_under_fsdp_alone(tmp_path, monkeypatch):
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    lora, whole = parts_of_stage("lora"), parts_of_stage("pretrain")
    check_sharding(lora, True, args)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    check_sharding(lora, True, args)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_sharding(lora, False, args)
    check_sharding(whole, True, args)
    with pytest.raises(ValueError, match="tie_word_embeddings.*use omnifusion_hf/recipes/accelerate/zero3.yaml"):
        check_sharding(lora, True, args)


@pytest.mark.parametrize("ways, sharded", [({}, False), ({"FSDP": "true"}, True), ({"DEEPSPEED": "1"}, True)])
@pytest.mark.parametrize(
    "fields, by_recipe", [({}, False), ({"fsdp": "full_shard"}, True), ({"deepspeed": "z"}, True)]
)
def test_one_of_the_ways_to_shard_is_enough(ways, sharded, fields, by_recipe, monkeypatch):
    for strategy in ("FSDP", "DEEPSPEED"):
        monkeypatch.setenv(f"ACCELERATE_USE_{strategy}", ways.get(strategy, "false"))
    args = SimpleNamespace(**{"fsdp": "", "deepspeed": None} | fields)
    assert is_sharded(args) is (sharded or by_recipe)
