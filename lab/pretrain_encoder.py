"""Pretrains the vision encoder on dense labels: every final token predicts the classes of the label cells it covers.

The labels come from the renderer (canvas.CLASSES). The head is discarded; the encoder is saved as an ordinary
transformers folder with its image processor.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import IterableDataset, get_worker_info
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, DonutSwinConfig, DonutSwinModel

from omnifusion_hf.io import staged_folder

from .canvas import CLASSES, GRID
from .pretraining import fit
from .world import KINDS, render


SIZE = 96
MIXTURE = {"scene": 0.2, "digit": 0.13, "text": 0.33, "formula": 0.34}
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
        attn_implementation="eager",
    )
    return CLIPVisionModel(config)


ARCHITECTURES = {"swin": donut_swin, "clip": clip_vit}


class Drawings(IterableDataset):
    """Endless batches of new training drawings, from batch `start` on, each in the proportions of `MIXTURE`."""

    def __init__(self, batch_size: int, start: int):
        self.batch_size, self.start = batch_size, start

    def __iter__(self):
        worker = get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker else (0, 1)
        shares = {kind: round(share * self.batch_size) for kind, share in MIXTURE.items()}
        for batch in range(self.start + number, 1 << 40, step):
            drawings = [render("train", kind, batch * n + i) for kind, n in shares.items() for i in range(n)]
            yield batch_of(drawings)


def batch_of(drawings) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, S, S) uint8 pixels, resized as by the image processor, and (B, 24, 24) labels."""
    small = [torch.frombuffer(bytearray(_resize(p.image).tobytes()), dtype=torch.uint8) for p in drawings]
    pixels = torch.stack(small).view(-1, SIZE, SIZE, 3).permute(0, 3, 1, 2)
    return pixels, torch.stack([torch.from_numpy(p.labels) for p in drawings])


def _resize(image) -> Image.Image:
    return Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


class DenseReader(torch.nn.Module):
    """An encoder with a head that classifies the cells of each of its tokens."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.swin = isinstance(encoder, DonutSwinModel)
        reduction = encoder.config.patch_size * (2 ** (len(encoder.config.depths) - 1) if self.swin else 1)
        self.side = SIZE // reduction
        self.sub = GRID // self.side
        self.head = torch.nn.Linear(encoder.config.hidden_size, self.sub**2 * len(CLASSES))
        self.place = torch.nn.Linear(encoder.config.hidden_size, 2 * self.side)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the cells' classes (B, 24, 24, classes), and of each token's row and column (B, T, 2, side)."""
        hidden = self.encoder(pixel_values=pixels / 127.5 - 1).last_hidden_state
        hidden = hidden if self.swin else hidden[:, 1:]  # (B, T, d), without a final norm, as the adapter reads it
        logits = self.head(hidden).view(-1, self.side, self.side, self.sub, self.sub, len(CLASSES))
        cells = logits.transpose(2, 3).reshape(-1, GRID, GRID, len(CLASSES))
        return cells, self.place(hidden).unflatten(-1, (2, self.side))


def dense_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    weight = torch.ones(len(CLASSES))
    weight[0] = BACKGROUND_WEIGHT
    return F.cross_entropy(logits.reshape(-1, len(CLASSES)).float(), labels.reshape(-1).long(), weight)


def place_loss(logits: torch.Tensor) -> torch.Tensor:
    """Teaches tokens their position, which the LLM needs: Swin has only relative positions."""
    batch, tokens, _, side = logits.shape
    number = torch.arange(tokens)
    places = torch.stack([number // side, number % side], dim=-1).expand(batch, -1, -1)  # (B, T, 2)
    return F.cross_entropy(logits.reshape(-1, side).float(), places.reshape(-1))


@torch.no_grad()
def validate(model: DenseReader, count: int = 192) -> dict[str, float]:
    """For each kind the share of correctly classified cells, background excluded."""
    model.eval()
    scores = {}
    for kind in KINDS:
        pixels, labels = batch_of([render("validation", kind, i) for i in range(count)])
        with torch.autocast("cpu", torch.bfloat16):
            named = torch.cat([model(p)[0].argmax(-1) for p in pixels.split(64)])
        drawn = labels != 0
        scores[kind] = (named == labels)[drawn].float().mean().item()
        scores[f"{kind}, image"] = _images_named(named, labels)
    model.train()
    return {k: round(v, 3) for k, v in scores.items()}


def _images_named(named: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of (image, class) regions whose most frequent prediction is right."""
    right = total = 0
    for answer, truth in zip(named, labels, strict=True):
        for label in truth.unique().tolist():
            if label:
                votes = answer[truth == label].bincount(minlength=len(CLASSES))
                right += int(votes.argmax() == label)
                total += 1
    return right / total


def train(out: Path, architecture: str = "swin", steps: int = 4000, batch_size: int = 48, lr: float = 2e-3) -> None:
    """Pretrains to `out`/encoder; an interrupted run continues from `out`/state."""
    torch.manual_seed(0)
    model = DenseReader(ARCHITECTURES[architecture]())

    def loss_of(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        pixels, labels = batch
        cells, places = model(pixels)
        return dense_loss(cells, labels) + place_loss(places)

    fit(model, loss_of, partial(Drawings, batch_size), out, steps, lr, partial(validate, model))
    with staged_folder(out / "encoder") as folder:
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
    args = parser.parse_args()
    train(args.out, args.architecture, args.steps, args.batch_size, args.lr)
