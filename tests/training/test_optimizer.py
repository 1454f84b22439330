"""Learning rates of single parts: which parameters have which; Trainer's own optimiser and schedule drive them."""

from pathlib import Path

import conversations
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from omnifusion_hf.training.muon import MuonWithAdamW
from omnifusion_hf.training.optimizer import optimizer_for
from omnifusion_hf.training.stages import apply_stage, part_of
from omnifusion_hf.training.arguments import parse_recipe
from omnifusion_hf.training.train import train


# PEFT 0.21 reads an attribute that transformers renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def trainer(model, optimizer=None, rates=None, **arguments) -> Trainer:
    args = TrainingArguments(use_cpu=True, learning_rate=1e-4, weight_decay=0.1, report_to="none", **arguments)
    made = Trainer(model=model, args=args, optimizer_cls_and_kwargs=optimizer_for(optimizer, args, rates or {}))
    made.create_optimizer()
    return made


def settings(made: Trainer, model) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter that the optimiser knows."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in made.optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize(("stage", "vision"), [("finetune", "full"), ("lora", "lora"), ("lora", "full")])
def test_case_09_each_part_has_its_learning_rate_and_trainers_weight_decay(stage, vision, tmp_path):
    model = apply_stage(tiny.model(), stage, vision)
    stock = settings(trainer(model, output_dir=tmp_path), model)
    rates = {"multi_modal_projector": 1e-3, "vision_tower": 1e-6}
    ours = settings(trainer(model, rates=rates, output_dir=tmp_path), model)
    assert set(ours) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert ours == {name: (rates.get(part_of(name), 1e-4), decay) for name, (_, decay) in stock.items()}
    assert {rate for rate, _ in ours.values()} == {1e-3, 1e-4, 1e-6}
    assert {decay for _, decay in ours.values()} == {0.0, 0.1}


def test_without_rates_trainer_chooses_by_itself(tmp_path):
    assert optimizer_for(None, None, {"vision_tower": None}) is None


def test_the_arguments_optimiser_and_schedule_are_used(tmp_path):
    model = apply_stage(tiny.model(), "finetune")
    made = trainer(
        model, rates={"multi_modal_projector": 1e-3}, output_dir=tmp_path, optim="adafactor", warmup_steps=10
    )
    assert type(made.optimizer).__name__ == "Adafactor"
    made.create_scheduler(100)
    scheduler = made.lr_scheduler
    assert set(scheduler.get_last_lr()) == {0.0}
    for _ in range(5):
        scheduler.step()
    assert sorted(set(scheduler.get_last_lr())) == pytest.approx([5e-5, 5e-4])
    assert scheduler.get_last_lr()[0] == pytest.approx(5e-5)  # the one that Trainer logs


def test_a_rate_for_a_frozen_part_is_refused(tmp_path):
    model = apply_stage(tiny.model(), "finetune")
    with pytest.raises(ValueError, match="given for vision_tower, which this stage does not train"):
        trainer(model, rates={"vision_tower": 1e-6}, output_dir=tmp_path)


def test_optimisers_that_group_by_themselves_take_no_rates(tmp_path):
    model = apply_stage(tiny.model(), "finetune")
    assert type(trainer(model, "muon", output_dir=tmp_path).optimizer) is MuonWithAdamW
    with pytest.raises(ValueError, match="muon.*leave out those of multi_modal_projector"):
        trainer(model, "muon", {"multi_modal_projector": 1e-3}, output_dir=tmp_path)


def test_a_rate_below_zero_is_refused():
    assert optimizer_for(None, None, {"vision_tower": 0.0})
    with pytest.raises(ValueError, match="0 or more, got -0.1 of vision_tower"):
        optimizer_for(None, None, {"vision_tower": -0.1, "multi_modal_projector": 1e-3})


def test_muon_of_a_newer_torch_is_said(monkeypatch, tmp_path):
    args = TrainingArguments(tmp_path, use_cpu=True)
    assert optimizer_for("muon", args, {})
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match="`muon` needs torch 2.9, this is 2"):
        optimizer_for("muon", args, {})


def moved(before: Path, after: Path) -> set[str]:
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    return {part_of(name) for name in old if not torch.equal(old[name], new[name])}


def test_recipes_rates_reach_the_run(tmp_path):
    """A part whose rate is 0 stays where it was."""
    base = conversations.write_model(tmp_path)
    options = {"stage": "finetune", "vision_tuning": "full", "learning_rate": 0.0, "vision_learning_rate": 0.01}
    train(*parse_recipe(conversations.write_recipe(tmp_path, base, **options)))
    assert moved(base, tmp_path / "out") == {"vision_tower"}
    overrides = ["vision_learning_rate=0.0", "projector_learning_rate=0.01", f"output_dir={tmp_path / 'other'}"]
    train(*parse_recipe(tmp_path / "recipe.yaml", overrides))
    assert moved(base, tmp_path / "other") == {"multi_modal_projector"}


def test_projector_rate_counts_for_special_token_rows_where_they_train_apart(tmp_path):
    base = conversations.write_model(tmp_path)
    recipe = conversations.write_recipe(tmp_path, base, learning_rate=0.0, projector_learning_rate=0.01)
    train(*parse_recipe(recipe))
    assert moved(base, tmp_path / "out") == {"multi_modal_projector", "language_model"}
