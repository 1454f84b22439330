"""Pretrains the vision encoder on dense labels: every final token names the class of each label cell it covers.

The supervision comes from the renderer (canvas.CLASSES). The head is thrown away; the encoder is saved as an ordinary
transformers folder with its image processor.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, DonutSwinConfig, DonutSwinModel

from .canvas import CLASSES, GRID
from .files import finish_folder, load_state, save_state
from .optimizer import optimizer_for
from .world import KINDS, render


SIZE = 96
MIXTURE = {"scene": 0.25, "digit": 0.15, "text": 0.33, "formula": 0.27}
BACKGROUND_WEIGHT = 0.15


def donut_swin(embed_dim: int = 64, depths: tuple[int, ...] = (2, 2, 2), window: int = 6) -> DonutSwinModel:
    heads = [embed_dim // 32 * 2**i for i in range(len(depths))]
    return DonutSwinModel(
        DonutSwinConfig(
            image_size=SIZE,
            patch_size=4,
            embed_dim=embed_dim,
            depths=list(depths),
            num_heads=heads,
            window_size=window,
            drop_path_rate=0.0,
        )
    )


def clip_vit(patch: int = 12, width: int = 192, layers: int = 5) -> CLIPVisionModel:
    config = CLIPVisionConfig(
        image_size=SIZE,
        patch_size=patch,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        hidden_act="gelu",
    )
    return CLIPVisionModel._from_config(config, attn_implementation="eager")


ARCHITECTURES = {"swin": donut_swin, "clip": clip_vit}


class Pictures(IterableDataset):
    """Endless fresh training pictures from number `start` on, one kind a batch in the mixture's proportions."""

    def __init__(self, batch_size: int, start: int):
        self.batch_size, self.start = batch_size, start

    def __iter__(self):
        worker = get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker else (0, 1)
        shares = {kind: round(share * self.batch_size) for kind, share in MIXTURE.items()}
        for batch in range(self.start + number, 1 << 40, step):
            pictures = [render("train", kind, batch * n + i) for kind, n in shares.items() for i in range(n)]
            yield batch_of(pictures)


def batch_of(pictures) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, S, S) uint8 pixels, resized as the image processor does, and (B, 24, 24) labels."""
    small = [torch.frombuffer(bytearray(_resize(p.image).tobytes()), dtype=torch.uint8) for p in pictures]
    pixels = torch.stack(small).view(-1, SIZE, SIZE, 3).permute(0, 3, 1, 2)
    return pixels, torch.stack([torch.from_numpy(p.labels) for p in pictures])


def _resize(image) -> Image.Image:
    return Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


class DenseReader(torch.nn.Module):
    """An encoder and the head that names the cells of each of its tokens."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.swin = isinstance(encoder, DonutSwinModel)
        reduction = encoder.config.patch_size * (2 ** (len(encoder.config.depths) - 1) if self.swin else 1)
        self.side = SIZE // reduction
        self.sub = GRID // self.side
        self.head = torch.nn.Linear(encoder.config.hidden_size, self.sub**2 * len(CLASSES))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(pixel_values=pixels / 127.5 - 1).last_hidden_state
        hidden = (
            hidden if self.swin else hidden[:, 1:]
        )  # (B, T, d), read without a norm: the adapter will read it so too
        logits = self.head(hidden).view(-1, self.side, self.side, self.sub, self.sub, len(CLASSES))
        return logits.transpose(2, 3).reshape(-1, GRID, GRID, len(CLASSES))


def dense_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    weight = torch.ones(len(CLASSES))
    weight[0] = BACKGROUND_WEIGHT
    return F.cross_entropy(logits.reshape(-1, len(CLASSES)).float(), labels.reshape(-1).long(), weight)


@torch.no_grad()
def validate(model: DenseReader, count: int = 192) -> dict[str, float]:
    """Share of drawn (not background) cells named right, a kind."""
    model.eval()
    scores = {}
    for kind in KINDS:
        pixels, labels = batch_of([render("validation", kind, i) for i in range(count)])
        with torch.autocast("cpu", torch.bfloat16):
            named = torch.cat([model(p).argmax(-1) for p in pixels.split(64)])
        drawn = labels != 0
        scores[kind] = (named == labels)[drawn].float().mean().item()
        scores[f"{kind}, picture"] = _pictures_named(named, labels)
    model.train()
    return {k: round(v, 3) for k, v in scores.items()}


def _pictures_named(named: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of (picture, class) regions whose most frequent drawn answer is right."""
    right = total = 0
    for answer, truth in zip(named, labels, strict=True):
        for label in truth.unique().tolist():
            if label:
                votes = answer[truth == label].bincount(minlength=len(CLASSES))
                right += int(votes.argmax() == label)
                total += 1
    return right / total


def train(out: Path, architecture: str, steps: int, batch_size: int, lr: float, seconds: float | None = None) -> None:
    torch.manual_seed(0)
    model = DenseReader(ARCHITECTURES[architecture]())
    optimizer, schedule = optimizer_for(model, lr, steps)
    done = load_state(out / "state.pt", model, *optimizer, *schedule)
    batches = iter(DataLoader(Pictures(batch_size, done), batch_size=None, num_workers=1, prefetch_factor=8))
    bar = tqdm(range(done, steps), initial=done, total=steps, desc="encoder", mininterval=5)
    begun, mean = time.time(), math.nan
    for step in bar:
        pixels, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(pixels)
        loss = dense_loss(logits, labels)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (*optimizer, *schedule):
            part.step()
        mean = loss.item() if math.isnan(mean) else 0.98 * mean + 0.02 * loss.item()
        bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
        over = seconds is not None and time.time() - begun > seconds
        if (step + 1) % 500 == 0 or step + 1 == steps or over:
            save_state(out / "state.pt", step + 1, model, *optimizer, *schedule)
            tqdm.write(json.dumps({"step": step + 1, "loss": round(mean, 3), **validate(model)}))
        if over:
            return
    with finish_folder(out / "encoder") as folder:
        model.encoder.save_pretrained(folder)
        image_processor().save_pretrained(folder)


def image_processor() -> CLIPImageProcessor:
    half, side = [0.5, 0.5, 0.5], {"height": SIZE, "width": SIZE}
    return CLIPImageProcessor(size=side, crop_size=side, image_mean=half, image_std=half, do_center_crop=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("lab/out/encoder"))
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="swin")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seconds", type=float, help="stop after this long (to be resumed)")
    args = parser.parse_args()
    train(args.out, args.architecture, args.steps, args.batch_size, args.lr, args.seconds)
