"""training/muon.py: which optimiser gets what, one schedule for both, and a state that resumes exactly."""

import copy

import pytest
import torch

from omnifusion_hf.training.muon import MuonWithAdamW, is_inner_matrix


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.embed_tokens = torch.nn.Embedding(10, 4)
    model.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
    return model


def loss_of(model, step: int) -> torch.Tensor:
    hidden = model.embed_tokens(torch.arange(step, step + 4) % 10)
    for layer in model.layers:
        hidden = layer(hidden).tanh()
    return (hidden - 0.5).square().mean()


def run(model, optimizer, steps: range):
    for step in steps:
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_matrices_of_layers_go_to_muon_and_everything_else_to_adamw(model):
    muon, adamw = MuonWithAdamW(model, lr=1e-2).parts
    assert [p.shape for g in muon.param_groups for p in g["params"]] == [(4, 4)] * 2
    assert [p.shape for g in adamw.param_groups for p in g["params"]] == [(10, 4), (4,), (4,)]
    assert not is_inner_matrix("layers.0.relative_position_bias_table", torch.zeros(9, 2))


def test_frozen_parameters_are_left_out(model):
    model.layers[0].requires_grad_(False)
    muon, adamw = MuonWithAdamW(model, lr=1e-2).parts
    assert sum(len(g["params"]) for part in (muon, adamw) for g in part.param_groups) == 3


def test_it_trains(model):
    before = loss_of(model, 0).item()
    run(model, MuonWithAdamW(model, lr=1e-2), range(60))
    assert loss_of(model, 0).item() < before / 10


def test_a_schedule_reaches_both_also_after_loading(model):
    optimizer = MuonWithAdamW(model, lr=1e-2)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.25)
    assert [g["lr"] for part in optimizer.parts for g in part.param_groups] == [0.0025, 0.0025]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(model):
    twin = copy.deepcopy(model)
    run(model, MuonWithAdamW(model, lr=1e-2), range(6))
    first = MuonWithAdamW(twin, lr=1e-2)
    run(twin, first, range(3))
    second = MuonWithAdamW(twin, lr=1e-2)
    unsaved = copy.deepcopy(twin)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(twin, second, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))
    run(unsaved, MuonWithAdamW(unsaved, lr=1e-2), range(3, 6))  # control: without the state it ends elsewhere
    assert not torch.equal(model.embed_tokens.weight, unsaved.embed_tokens.weight)


def test_a_stage_without_matrices_of_layers_is_refused(model):
    model.layers.requires_grad_(False)
    with pytest.raises(ValueError, match="this stage trains none"):
        MuonWithAdamW(model, lr=1e-2)
