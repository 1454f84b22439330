"""The loop and the optimiser that both pretrainings share; stages 1 and 2 are the stock Trainer's.

Muon needed about half of AdamW's samples for the same dense loss (docs/lab.md).
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from .files import load_state, save_state


SAVE_EVERY = 500


def fit(
    model: torch.nn.Module,
    loss_of: Callable[..., torch.Tensor],
    batches_from: Callable[[int], IterableDataset],
    out: Path,
    steps: int,
    lr: float,
    report: Callable[[], dict] = dict,
) -> None:
    """Trains in bfloat16 autocast; goes on from `out`/state.pt where there is one.

    Args:
        loss_of: the loss of one batch.
        batches_from: the endless batches from a step on.
        report: figures to print whenever the state is saved.
    """
    optimizers, schedules = optimizer_for(model, lr, steps)
    parts = (model, *optimizers, *schedules)
    done, mean = load_state(out / "state.pt", *parts), math.nan
    batches = iter(DataLoader(batches_from(done), batch_size=None, num_workers=1, prefetch_factor=8))
    bar = tqdm(range(done + 1, steps + 1), initial=done, total=steps, desc=out.name, mininterval=5)
    for step in bar:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(next(batches))
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (*optimizers, *schedules):
            part.step()
        mean = loss.item() if math.isnan(mean) else 0.98 * mean + 0.02 * loss.item()
        bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
        if step % SAVE_EVERY == 0 or step == steps:
            save_state(out / "state.pt", step, *parts)
            tqdm.write(str({"step": step, "loss": round(mean, 3), **report()}))


def optimizer_for(model: torch.nn.Module, lr: float, steps: int):
    """Muon for the matrices inside the layers, AdamW for everything else, under one cosine schedule."""
    inner = {n for n, p in model.named_parameters() if p.ndim == 2 and "layer" in n and "bias_table" not in n}
    matrices = [p for n, p in model.named_parameters() if n in inner]
    others = [p for n, p in model.named_parameters() if n not in inner]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    optimizers = (muon, adam)
    return optimizers, [get_cosine_schedule_with_warmup(o, 100, steps) for o in optimizers]
