"""Linear probe of a frozen encoder: a linear head predicts the renderer's label cells from the last hidden state.

python -m lab.probe lab/out/ablations/dinov2/encoder
"""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModel

from .pretrain_encoder import DenseReader, Drawings, dense_loss, validate


def probe(folder: Path, steps: int = 300, batch_size: int = 32, lr: float = 1e-2) -> dict[str, float]:
    """The figures of `pretrain_encoder.validate` with a new head, the only trained part, after `steps` batches."""
    torch.manual_seed(0)
    model = DenseReader(AutoModel.from_pretrained(folder, attn_implementation="eager").eval())
    model.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.head.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    batches = iter(DataLoader(Drawings(batch_size, start=1_000_000), batch_size=None))
    for _ in range(steps):
        pixels, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            loss = dense_loss(model(pixels)[0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return validate(model)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    print(probe(parser.parse_args().encoder))
