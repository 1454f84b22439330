# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Optimizers beyond TrainingArguments' own: learning rates of single parts, and Muon."""

import inspect

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from .sharding import is_sharded
from .stages import part_of


def check_optimizer(name: str | None, args: TrainingArguments, rates: dict[str, float]):
    """Raises `ValueError` for a negative rate, for rates of parts with Muon, and for Muon on shards or in old torch.

    Args:
        name: `"muon"` or `None`.
        rates: learning rates of single parts (`stages.PARTS`).
    """
    if below := [f"{rate} of {part}" for part, rate in rates.items() if rate < 0]:  # torch checks the default only
        raise ValueError(f"a learning rate must be 0 or more, got {', '.join(below)}.")
    if name is None:
        return
    if rates:
        raise ValueError(f"optimizer `muon` has one learning rate; leave out those of {', '.join(rates)}.")
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"optimizer `muon` needs torch 2.9, this is {torch.__version__}; update it or leave it out.")
    if is_sharded(args):
        raise ValueError("optimizer `muon` needs whole matrices, which FSDP and DeepSpeed shard; use ddp.yaml.")


def optimizer_by_part(
    model: nn.Module, args: TrainingArguments, rates: dict[str, float], decayed: set[str]
) -> torch.optim.Optimizer:
    """The optimizer of `args.optim` with groups by learning rate and weight decay. A schedule scales all rates alike.

    decayed: names of the parameters with weight decay.

    Raises `ValueError` for a rate of a frozen part, and for an optimizer that makes groups of its own.
    """
    cls, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    is_optimizer = inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)
    if not is_optimizer or options.keys() & {"params", "model", "optimizer_dict"}:
        raise ValueError(f"optim: {args.optim} groups parameters itself; remove the learning rates of single parts.")
    groups = {(args.learning_rate, args.weight_decay): []}  # first, because Trainer logs the first group's rate
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if frozen := rates.keys() - {part_of(name) for name in trained}:
        raise ValueError(f"{', '.join(sorted(frozen))} has a learning rate, but this stage does not train it.")
    for name, parameter in trained.items():
        group = rates.get(part_of(name), args.learning_rate), args.weight_decay if name in decayed else 0.0
        groups.setdefault(group, []).append(parameter)
    groups = [{"params": ps, "lr": lr, "weight_decay": decay} for (lr, decay), ps in groups.items() if ps]
    return cls(groups, **options)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices of the layers and AdamW for everything else, as one optimizer that Trainer can drive.

    Muon takes matrices only; its authors advise AdamW for embeddings, heads, norms and biases. Both have the same
    learning rate, because Muon's updates are scaled to the size of AdamW's.

    Args:
        model: its trained parameters are optimized; matrices of numbered layers by Muon.
        lr, weight_decay: of both.
        decayed: names of the parameters that AdamW decays; default: all.
        adamw: `betas` and `eps`.

    Raises `ValueError` if no matrix of a layer trains.
    """

    def __init__(
        self, model: nn.Module, lr: float, weight_decay: float = 0.0, decayed: set[str] | None = None, **adamw
    ):
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if is_inner_matrix(name, p)]
        others = {weight_decay: [], 0.0: []}
        for name, p in named:
            if not is_inner_matrix(name, p):
                others[weight_decay if decayed is None or name in decayed else 0.0].append(p)
        others = [{"params": ps, "weight_decay": decay} for decay, ps in others.items() if ps]
        if not matrices:
            raise ValueError("optimizer `muon` trains matrices of layers, but this stage trains none; leave it out.")
        self.parts = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, **adamw),
        ]
        super().__init__([{"params": matrices}, *map(dict, others)], {"lr": lr})
        self._share_groups()

    def _share_groups(self):
        # the same dict objects as in the parts: a schedule writes its learning rate into both
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict):
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def is_inner_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether it is a matrix of a numbered layer (`layers.3.…`). Swin's table of position biases is a look-up."""
    return parameter.ndim == 2 and "layer" in name and "bias_table" not in name
