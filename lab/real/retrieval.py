"""The honest bars for names of things, by the encoder alone: the name of the nearest known drawing, and of a linear
classifier of the same features."""

import json
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm
from transformers import Dinov2Model

from omnifusion_hf import OmniFusionImageProcessor

from . import emoji, encoder


SIDE = 112
BATCH = 64
RIDGE = 0.1
FILES = "train", "names"


@torch.no_grad()
def features(images: list[str]) -> torch.Tensor:
    """Patches pooled 2 x 2 of each hidden state, normalised: (layers, images, d)."""
    model = Dinov2Model.from_pretrained(encoder.convert()).eval()
    processor = OmniFusionImageProcessor.from_pretrained(
        encoder.convert(), size={"height": SIDE, "width": SIDE}, image_fit="squash"
    )
    found = []
    for start in tqdm(range(0, len(images), BATCH), desc="features"):
        files = [Image.open(emoji.FOLDER / image) for image in images[start : start + BATCH]]
        pixel_values = processor(files, return_tensors="pt").pixel_values
        states = model(pixel_values, output_hidden_states=True)
        grid = torch.stack(states.hidden_states)[:, :, 1:].unflatten(
            2, (SIDE // 14, SIDE // 14)
        )  # (layers, B, 8, 8, d)
        pooled = nn.functional.avg_pool2d(grid.flatten(0, 1).movedim(-1, 1), 2)  # (layers·B, d, 4, 4)
        found.append(nn.functional.normalize(pooled.flatten(1)).unflatten(0, (len(grid), -1)))
    return torch.cat(found, dim=1)


def accuracies() -> list[dict[str, float]]:
    """Of each hidden state: how many drawings in unseen styles get their name from the nearest drawing, and from a
    linear classifier; all, and of each style."""
    train, names = (json.loads((emoji.write() / f"{name}.json").read_text(encoding="utf-8")) for name in FILES)
    known = [sample["image"] for sample in train if not Path(sample["image"]).suffixes[1:]]  # no variations
    asked = [sample["image"] for sample in names]
    things = [image.partition("/")[2] for image in known]
    numbers = {thing: number for number, thing in enumerate(dict.fromkeys(things))}
    number_of = torch.tensor([numbers[thing] for thing in things])
    truth = torch.tensor([numbers[image.partition("/")[2]] for image in asked])
    styles = {style: [image.startswith(style) for image in asked] for style in ("", *emoji.HELD_OUT_STYLES)}
    found = []
    for known_features, asked_features in zip(features(known), features(asked)):
        nearest = number_of[(asked_features @ known_features.mT).argmax(-1)]
        named = {"nearest": nearest, "linear": classified(known_features, number_of, asked_features)}
        found.append(
            {
                f"{method} {style or 'all'}": (answers == truth)[of].double().mean().item()
                for method, answers in named.items()
                for style, of in styles.items()
            }
        )
    return found


def classified(known: torch.Tensor, numbers: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Classes of features (N, d) by ridge regression on those of `numbers` (M,), in its dual form."""
    mean = known.mean(0)
    known, asked = known - mean, asked - mean
    kernel, targets = known @ known.mT, nn.functional.one_hot(numbers).float()
    kernel.diagonal().add_(RIDGE * kernel.diagonal().mean())
    return (asked @ known.mT @ torch.linalg.solve(kernel, targets - targets.mean(0))).argmax(-1)
