"""The training loop of all pretrainings; stages 1 and 2 run in the package's trainer.

docs/lab.md gives the reason for Muon.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from omnifusion_hf.io import staged_folder
from omnifusion_hf.training.optimizer import MuonWithAdamW


SAVE_EVERY, WARMUP_STEPS = 500, 100


def fit(
    model: torch.nn.Module,
    loss_of: Callable[..., torch.Tensor],
    batches_from: Callable[[int], IterableDataset],
    out: Path,
    steps: int,
    lr: float,
    report: Callable[[], dict] = dict,
) -> None:
    """Trains in bfloat16 autocast; continues from `out`/state if it exists.

    Args:
        loss_of: the loss of one batch.
        batches_from: returns the endless batches from a step on.
        report: returns figures that are printed whenever the state is saved.
    """
    optimizer = MuonWithAdamW(model, lr, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, steps)
    parts = (model, optimizer, schedule)
    done, mean = load_state(out / "state", *parts), math.nan
    batches = iter(DataLoader(batches_from(done), batch_size=None, num_workers=1, prefetch_factor=8))
    bar = tqdm(range(done + 1, steps + 1), initial=done, total=steps, desc=out.name, mininterval=5)
    for step in bar:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(next(batches))
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean = loss.item() if math.isnan(mean) else 0.98 * mean + 0.02 * loss.item()
        bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
        if step % SAVE_EVERY == 0 or step == steps:
            save_state(out / "state", step, *parts)
            tqdm.write(str({"step": step, "loss": round(mean, 3), **report()}))


class Counter:
    """The step as an object with a `state_dict`, which accelerate can save."""

    def __init__(self, step: int = 0):
        self.step = step

    def state_dict(self) -> dict:
        return {"step": self.step}

    def load_state_dict(self, state: dict):
        self.step = state["step"]


def training_state(*parts) -> Accelerator:
    """An `Accelerator` that saves everything with a `state_dict`, and the state of random generators."""
    accelerator = Accelerator(cpu=True)
    accelerator.register_for_checkpointing(*parts)
    return accelerator


def save_state(path: Path, step: int, *parts):
    """Saves the step and the parts, whose order must be that of `load_state`."""
    with staged_folder(path) as folder:
        training_state(Counter(step), *parts).save_state(str(folder))


def load_state(path: Path, *parts) -> int:
    """Loads the parts from a saved state and returns its step; returns 0 and changes nothing if there is none."""
    counter = Counter()
    if path.exists():
        training_state(counter, *parts).load_state(str(path))
    return counter.step
