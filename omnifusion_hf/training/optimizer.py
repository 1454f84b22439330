# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The optimiser as Trainer takes it: its own, its own with learning rates for single parts, or Muon; no subclass."""

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_optimizer import is_optimizer_factory

from .devices import is_sharded
from .muon import MuonWithAdamW
from .stages import part_of


def optimizer_for(name: str | None, args: TrainingArguments, rates: dict[str, float | None]) -> tuple | None:
    """Trainer's `optimizer_cls_and_kwargs`; `None` where its own choice serves.

    Args:
        name: `"muon"` or `None`.
        rates: learning rate of a part (`stages.PARTS`); the other parts have `args.learning_rate`.

    Raises `ValueError` for a rate below 0, for rates of parts beside Muon's, and for Muon on shards or in old torch.
    """
    rates = {part: rate for part, rate in rates.items() if rate is not None}
    if below := [f"{rate} of {part}" for part, rate in rates.items() if rate < 0]:  # torch looks at the default alone
        raise ValueError(f"a learning rate must be 0 or more, got {', '.join(below)}.")
    if name == "muon" and rates:
        raise ValueError(f"optimizer `muon` has one learning rate; leave out those of {', '.join(rates)}.")
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        raise ValueError(f"optimizer `muon` needs torch 2.9, this is {torch.__version__}; update it or leave it out.")
    if name == "muon" and is_sharded(args):
        raise ValueError("optimizer `muon` needs whole matrices, which FSDP and DeepSpeed shard; use ddp.yaml.")
    if name == "muon":
        return lambda: MuonWithAdamW, {"lr": args.learning_rate, "weight_decay": args.weight_decay}
    return (lambda: optimizer_by_part, {"args": args, "rates": rates}) if rates else None


def optimizer_by_part(model: nn.Module, args: TrainingArguments, rates: dict[str, float]) -> torch.optim.Optimizer:
    """The optimiser of `args.optim` with groups by learning rate and weight decay; a schedule scales all alike.

    Raises `ValueError` for a rate of a part that is frozen, and for an optimiser that makes groups of its own.
    """
    cls, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if is_optimizer_factory(cls) or options.keys() & {"params", "model", "optimizer_dict"}:
        raise ValueError(f"optim: {args.optim} groups parameters itself; give no learning rates of single parts.")
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    groups = {(args.learning_rate, args.weight_decay): []}  # first: the learning rate that Trainer logs
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    idle = rates.keys() - {part_of(name) for name in trained}
    if idle:
        raise ValueError(f"a learning rate is given for {', '.join(sorted(idle))}, which this stage does not train.")
    for name, parameter in trained.items():
        group = rates.get(part_of(name), args.learning_rate), args.weight_decay if name in decayed else 0.0
        groups.setdefault(group, []).append(parameter)
    groups = [{"params": ps, "lr": lr, "weight_decay": decay} for (lr, decay), ps in groups.items() if ps]
    return cls(groups, **options)
