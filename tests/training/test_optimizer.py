"""Learning rates of single parts, and Muon: who has which, one schedule, a state that resumes exactly."""

import copy
from pathlib import Path

import pytest
import tiny
import torch
from training_runs import parts_changed, rerun, run
from transformers import Trainer

from omnifusion_hf.training.arguments import ModelDataArguments, OmniFusionTrainingArguments
from omnifusion_hf.training.optimizer import MuonWithAdamW, check_optimizer, is_inner_matrix
from omnifusion_hf.training.stages import apply_stage, part_of
from omnifusion_hf.training.trainer import OmniFusionTrainer


def arguments(folder: Path, **changes) -> OmniFusionTrainingArguments:
    fields = {"use_cpu": True, "learning_rate": 1e-4, "weight_decay": 0.1, "report_to": "none"}
    return OmniFusionTrainingArguments(str(folder), **fields | changes)


def trainer(model, folder: Path, optimizer=None, projector=None, vision=None, **changes) -> OmniFusionTrainer:
    rates = {"projector_learning_rate": projector, "vision_learning_rate": vision}
    recipe = ModelDataArguments("", "finetune", "", optimizer=optimizer, **rates)
    made = OmniFusionTrainer(model, arguments(folder, **changes), recipe, [{}], tiny.processor(tiny.config()))
    made.create_optimizer()
    return made


def settings(made: Trainer, model) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter that the optimiser knows."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = made.optimizer.param_groups
    return {names[id(each)]: (group["lr"], group["weight_decay"]) for group in groups for each in group["params"]}


@pytest.mark.parametrize(("stage", "vision"), [("finetune", "full"), ("lora", "lora"), ("lora", "full")])
def test_each_part_has_its_learning_rate_and_trainers_weight_decay(stage, vision, tmp_path):
    model = apply_stage(tiny.model(), stage, vision)
    stock = Trainer(model, arguments(tmp_path))
    stock.create_optimizer()
    ours = settings(trainer(model, tmp_path, projector=1e-3, vision=1e-6), model)
    assert set(ours) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    rates, theirs = {"multi_modal_projector": 1e-3, "vision_tower": 1e-6}, settings(stock, model)
    assert ours == {name: (rates.get(part_of(name), 1e-4), decay) for name, (_, decay) in theirs.items()}
    assert {rate for rate, _ in ours.values()} == {1e-3, 1e-4, 1e-6}
    assert {decay for _, decay in ours.values()} == {0.0, 0.1}
    assert settings(trainer(model, tmp_path), model) == settings(stock, model)  # control: no rates, Trainer's choice


def test_the_arguments_optimizer_and_schedule_are_used(tmp_path):
    model = apply_stage(tiny.model(), "finetune")
    made = trainer(model, tmp_path, projector=1e-3, optim="adafactor", warmup_steps=10)
    assert type(made.optimizer).__name__ == "Adafactor"
    scheduler = made.create_scheduler(100)
    assert set(scheduler.get_last_lr()) == {0.0}
    for _ in range(5):
        scheduler.step()
    assert sorted(set(scheduler.get_last_lr())) == pytest.approx([5e-5, 5e-4])
    assert scheduler.get_last_lr()[0] == pytest.approx(5e-5)  # the one that Trainer logs


def test_rates_of_frozen_parts_below_zero_and_beside_muon_are_refused(tmp_path):
    model = apply_stage(tiny.model(), "finetune")
    with pytest.raises(ValueError, match="vision_tower has a learning rate, but this stage does not train it"):
        trainer(model, tmp_path, vision=1e-6)
    assert type(trainer(model, tmp_path, "muon").optimizer) is MuonWithAdamW
    with pytest.raises(ValueError, match="muon.*leave out those of multi_modal_projector"):
        trainer(model, tmp_path, "muon", projector=1e-3)
    check_optimizer(None, arguments(tmp_path), {"vision_tower": 0.0})
    with pytest.raises(ValueError, match="0 or more, got -0.1 of vision_tower"):
        check_optimizer(None, arguments(tmp_path), {"vision_tower": -0.1, "multi_modal_projector": 1e-3})


def test_muon_needs_a_newer_torch_and_whole_matrices(monkeypatch, tmp_path):
    args = arguments(tmp_path)
    check_optimizer("muon", args, {})
    for flag in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.setenv(flag, "true")
        check_optimizer(None, args, {})
        with pytest.raises(ValueError, match="`muon` needs whole matrices.*use ddp.yaml"):
            check_optimizer("muon", args, {})
        monkeypatch.delenv(flag)
    monkeypatch.delattr(torch.optim, "Muon")
    check_optimizer(None, args, {})
    with pytest.raises(ValueError, match="`muon` needs torch 2.9, this is 2"):
        check_optimizer("muon", args, {})


def test_recipes_rates_reach_the_run_and_the_adapters_counts_for_special_token_rows(tmp_path, base):
    """A part whose rate is 0 does not change."""
    options = {"vision_tuning": "full", "learning_rate": 0.0, "vision_learning_rate": 0.01}
    run(tmp_path, base, **options)
    assert parts_changed(base, tmp_path / "out") == {"vision_tower"}
    rates = ["vision_learning_rate=0.0", "projector_learning_rate=0.01"]
    for stage, rows in {"finetune": set(), "pretrain": {"language_model"}}.items():
        rerun(tmp_path / "recipe.yaml", f"stage={stage}", *rates, f"output_dir={tmp_path / stage}")
        assert parts_changed(base, tmp_path / stage) == {"multi_modal_projector"} | rows


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.embed_tokens = torch.nn.Embedding(10, 4)
    model.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
    return model


def take(model, optimizer, steps: range) -> list[float]:
    """The loss of each step."""
    losses = []
    for step in steps:
        hidden = model.embed_tokens(torch.arange(step, step + 4) % 10)
        for layer in model.layers:
            hidden = layer(hidden).tanh()
        loss = (hidden - 0.5).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_adamw_beside_muon_has_the_recipes_settings_and_decays_what_trainer_decays(model):
    options = {"betas": (0.5, 0.6), "eps": 1e-3}
    adamw = MuonWithAdamW(model, 1e-2, 0.1, decayed={"embed_tokens.weight"}, **options).parts[1]
    assert [(group["weight_decay"], group["betas"], group["eps"]) for group in adamw.param_groups] == [
        (decay, *options.values()) for decay in (0.1, 0.0)
    ]
    assert [[parameter.shape for parameter in group["params"]] for group in adamw.param_groups] == [
        [(10, 4)],
        [(4,), (4,)],
    ]


def shapes(model) -> list[list[tuple]]:
    """Of the parameters of Muon and of AdamW."""
    parts = MuonWithAdamW(model, lr=1e-2).parts
    return [[parameter.shape for group in part.param_groups for parameter in group["params"]] for part in parts]


def test_trained_matrices_of_layers_go_to_muon_and_everything_else_to_adamw(model):
    assert shapes(model) == [[(4, 4), (4, 4)], [(10, 4), (4,), (4,)]]
    assert not is_inner_matrix("layers.0.relative_position_bias_table", torch.zeros(9, 2))
    model.layers[0].requires_grad_(False)
    assert shapes(model) == [[(4, 4)], [(10, 4), (4,)]]
    model.layers.requires_grad_(False)
    with pytest.raises(ValueError, match="this stage trains none"):
        shapes(model)


def test_muons_updates_have_the_size_of_adamws(model):
    """`match_rms_adamw`: 0.2 per element, whatever the shape. torch's default scales with the shape."""
    model.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 64)])
    before = copy.deepcopy(model.layers)
    model.layers[1](model.layers[0](torch.randn(64, 4)).tanh()).square().mean().backward()
    MuonWithAdamW(model, lr=1e-2).step()
    sizes = [(new.weight - old.weight).square().mean().sqrt().item() for old, new in zip(before, model.layers)]
    assert sizes == pytest.approx([0.2 * 1e-2] * 2, rel=0.3)


def test_muon_trains_resumes_exactly_from_its_state_and_then_follows_a_schedule(model):
    twin = copy.deepcopy(model)
    losses = take(model, MuonWithAdamW(model, lr=1e-2), range(61))
    assert losses[60] < losses[0] / 10
    first, second = MuonWithAdamW(twin, lr=1e-2), MuonWithAdamW(twin, lr=1e-2)
    take(twin, first, range(3))
    unsaved = copy.deepcopy(twin)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert take(twin, second, range(3, 61)) == losses[3:]
    assert take(unsaved, MuonWithAdamW(unsaved, lr=1e-2), range(3, 61)) != losses[3:]  # control: without the state
    with pytest.raises(ValueError, match="shorter"):
        second.load_state_dict({"parts": []})
    torch.optim.lr_scheduler.LambdaLR(second, lambda step: 0.25)
    assert [g["lr"] for part in second.parts for g in part.param_groups] == [0.0025, 0.0025]
