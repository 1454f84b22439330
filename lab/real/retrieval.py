"""The honest bar for names of things: the name of the nearest known drawing, by the encoder alone."""

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


def accuracies() -> list[float]:
    """Of each hidden state: how many drawings in unseen styles are nearest to a drawing of the same thing."""
    read = {
        name: json.loads((emoji.write() / f"{name}.json").read_text(encoding="utf-8")) for name in ("train", "names")
    }
    known, asked = ([sample["image"] for sample in samples] for samples in read.values())
    known = [image for image in known if not Path(image).suffixes[1:]]  # no variations
    things = [image.partition("/")[2] for image in known]
    nearest = (features(asked) @ features(known).mT).argmax(-1)  # (layers, asked)
    return [
        sum(things[near] == image.partition("/")[2] for near, image in zip(layer, asked)) / len(asked)
        for layer in nearest.tolist()
    ]
