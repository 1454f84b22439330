"""Pretrains a second vision encoder without labels, for the mixes of lab.ablations: a DINOv2 model that sees half of
an image's patches and predicts the pixels of all (masked patch prediction as in SimMIM, arXiv 2111.09886).

Its tokens hold colours and edges instead of the names that the CLIP model of lab.pretrain_encoder learns from labels.
Only the architecture is DINOv2's, not the objective (self-distillation).
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

from omnifusion_hf.io import staged_folder

from .pretrain_encoder import SIZE, Drawings, batch_of, image_processor
from .pretraining import fit
from .world import KINDS, render


PATCH = 12
HIDDEN_SHARE = 0.5


def dinov2_vit(width: int = 128, layers: int = 5) -> Dinov2Model:
    config = Dinov2Config(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        attn_implementation="eager",
    )
    return Dinov2Model(config)


class Painter(torch.nn.Module):
    """An encoder with a head that predicts each patch's pixels from its token."""

    def __init__(self, encoder: Dinov2Model):
        super().__init__()
        self.encoder = encoder
        self.head = torch.nn.Linear(encoder.config.hidden_size, 3 * PATCH**2)

    def forward(self, pixels: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Predicted patches (B, T, 3 * 12 * 12) of pixels (B, 3, S, S) in [-1, 1]; patches in `hidden` (B, T) are
        masked."""
        tokens = self.encoder(pixel_values=pixels, bool_masked_pos=hidden).last_hidden_state[:, 1:]
        return self.head(tokens)


def patches_of(pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, S, S) to (B, T, 3 * 12 * 12), patches row by row."""
    return F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)


def random_mask(batch: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """(B, T): `HIDDEN_SHARE` of each image's patches, drawn at random."""
    tokens = (SIZE // PATCH) ** 2
    return torch.rand(batch, tokens, generator=generator).argsort(-1) < int(HIDDEN_SHARE * tokens)


def painting_loss(model: Painter, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    pixels = batch[0] / 127.5 - 1
    painted = model(pixels, random_mask(len(pixels)))
    return F.smooth_l1_loss(painted.float(), patches_of(pixels), beta=0.1)


@torch.no_grad()
def validate(model: Painter, count: int = 96) -> dict[str, float]:
    """For each kind the explained share of the masked patches' variance about each image's mean colour."""
    model.eval()
    shares = {}
    for kind in KINDS:
        pixels = batch_of([render("validation", kind, i) for i in range(count)])[0] / 127.5 - 1
        hidden = random_mask(count, torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16):
            painted = model(pixels, hidden).float()
        mean = pixels.mean((2, 3), keepdim=True)
        error = (painted - patches_of(pixels))[hidden].square().mean()
        shares[kind] = round(1 - (error / patches_of(pixels - mean)[hidden].square().mean()).item(), 3)
    model.train()
    return shares


def train(out: Path, steps: int = 2400, batch_size: int = 32, lr: float = 2e-3) -> None:
    """Pretrains to `out`/encoder; an interrupted run continues from `out`/state."""
    torch.manual_seed(0)
    model = Painter(dinov2_vit())
    fit(model, partial(painting_loss, model), partial(Drawings, batch_size), out, steps, lr, partial(validate, model))
    with staged_folder(out / "encoder") as folder:
        model.encoder.save_pretrained(folder)
        image_processor().save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("lab/out/ablations/dinov2"))
    parser.add_argument("--steps", type=int, default=2400)
    args = parser.parse_args()
    train(args.out, args.steps)
