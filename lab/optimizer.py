"""The optimiser of both pretrainings. Muon needed about half of AdamW's samples for the same dense loss (docs/lab.md)."""

import torch
from transformers import get_cosine_schedule_with_warmup


def optimizer_for(model: torch.nn.Module, lr: float, steps: int):
    """Muon for the matrices inside the layers, AdamW for everything else, under one cosine schedule."""
    inner = {n for n, p in model.named_parameters() if p.ndim == 2 and "layer" in n and "bias_table" not in n}
    matrices = [p for n, p in model.named_parameters() if n in inner]
    others = [p for n, p in model.named_parameters() if n not in inner]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    optimizers = (muon, adam)
    return optimizers, [get_cosine_schedule_with_warmup(o, 100, steps) for o in optimizers]
