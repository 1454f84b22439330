"""Stages: the parts that train, that nothing else changes, and gradients under activation checkpointing."""

import copy

import names
import pytest
import tiny
import torch
from training_runs import batch, changed, saved, step

from omnifusion_hf.training.lora import LoraSettings
from omnifusion_hf.training.stages import STAGES, apply_stage, format_plan, stage_plan


@pytest.mark.parametrize("vision", ["frozen", "full", "lora"])
@pytest.mark.parametrize("stage", STAGES)
def test_stage_trains_exactly_these_names_and_one_step_changes_them_all(stage, vision):
    if (stage, vision) == ("finetune", "lora"):
        pytest.skip("refused, see below")
    model = tiny.model(tiny.config(encoders=("clip", "dinov2"), projector_type="concatenation"))
    inputs = batch(model)
    model = apply_stage(model, stage, vision)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == names.trained(stage, vision)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = step(model, inputs)
    step(model, inputs)  # one of LoRA's two factors starts at zero and hides the other from the first step
    assert changed(before, dict(model.named_parameters())) == trained
    assert len(optimizer.state) == len(trained)


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2", "internvl", "swin"])
def test_no_parameter_of_a_trained_tower_is_left_without_a_gradient(family):
    model = tiny.model(tiny.config(encoders=(family,)))
    inputs = batch(model)
    apply_stage(model, "pretrain", "full")
    model(**inputs).loss.backward()
    tower = dict(model.model.vision_tower.named_parameters())
    assert tower and not [name for name, parameter in tower.items() if parameter.grad is None]


def test_unknown_stages_and_lora_on_the_tower_beside_a_whole_llm_are_refused():
    with pytest.raises(ValueError, match="`sft` is unknown; use one of .*finetune"):
        apply_stage(tiny.model(), "sft")
    with pytest.raises(ValueError, match="finetune trains the whole LLM.*vision_tuning: full"):
        apply_stage(tiny.model(), "finetune", "lora")


FIELDS = ("parameters", "tensors", "weight_bytes", "gradient_bytes", "optimizer_bytes")


def test_plan_counts_weights_gradients_and_what_the_optimizer_will_hold():
    model = tiny.model()
    plans = {plan.part: plan for plan in stage_plan(apply_stage(model, "pretrain"))}
    optimizer = step(model, batch(model))
    moments = [state[key].nbytes for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    gradients = [parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None]
    total = {field: sum(getattr(plan, field) for plan in plans.values()) for field in FIELDS}
    assert total["optimizer_bytes"] == sum(moments) and total["gradient_bytes"] == sum(gradients)
    assert total["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert total["weight_bytes"] == sum(parameter.nbytes for parameter in model.parameters())
    assert total["tensors"] == len(optimizer.state)
    assert plans["special_token_rows"].trained == 5 * model.config.text_config.hidden_size
    assert plans["language_model"].trained == plans["vision_tower"].trained == 0
    assert f"{plans['multi_modal_projector'].trained:,}" in format_plan(list(plans.values()))


def test_trained_parts_are_float32_in_a_bfloat16_model_which_is_saved_as_bfloat16(tmp_path):
    model = apply_stage(tiny.model().to(torch.bfloat16), "pretrain")
    dtypes = {(parameter.dtype, parameter.requires_grad) for parameter in model.parameters()}
    assert dtypes == {(torch.float32, True), (torch.bfloat16, False)}
    assert saved(model, tmp_path)["model.language_model.embed_tokens.weight"].dtype == torch.bfloat16


def test_frozen_encoder_drops_no_paths_in_training_mode():
    config = tiny.config(encoders=["swin"])
    config.vision_config.encoder_configs[0].drop_path_rate = 0.9
    model = tiny.model(config)
    pixels = batch(model)["pixel_values"]

    def differ() -> bool:
        model.train()
        first, second = (model.model.vision_tower(pixels).features[0] for _ in range(2))
        return not torch.equal(first, second)

    assert differ()
    apply_stage(model, "pretrain")
    assert not differ()


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize(("stage", "vision"), [("pretrain", "lora"), ("lora", "frozen"), ("pretrain", "frozen")])
def test_checkpointing_gives_the_trained_the_gradients_of_the_plain_run_and_keeps_the_frozen_frozen(
    stage, vision, use_reentrant
):
    model = tiny.model()
    inputs = batch(model)
    model = apply_stage(model, stage, vision, LoraSettings(dropout=0.0))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in trained.items():
        if "lora_B" in name:  # starts at zero and would hide the other factor
            parameter.data.normal_()
    plain, before = copy.deepcopy(model), copy.deepcopy(dict(model.named_parameters()))
    tiny.checkpoint_activations(model, {"use_reentrant": use_reentrant})
    features = []
    tower = next(module for name, module in model.named_modules() if name.endswith("vision_tower"))
    tower.register_forward_hook(lambda module, args, output: features.extend(output.last_features))
    for each in (plain, model):
        step(each, inputs)
    assert changed(before, dict(model.named_parameters())) == set(trained)
    assert features and all((feature.grad_fn is None) == (vision == "frozen") for feature in features)
    expected = dict(plain.named_parameters())
    for name, parameter in trained.items():
        assert parameter.grad.any()
        torch.testing.assert_close(parameter.grad, expected[name].grad)
