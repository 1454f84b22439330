# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Changes of images before a model sees them: pure functions, and the table of their strengths.

Each maps (RGB image, strength, seed) to an image of the same size. All randomness comes from the seed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageFilter, ImageStat


BICUBIC = Image.Resampling.BICUBIC


def blur(image: Image.Image, strength: float, seed: int) -> Image.Image:
    """Gaussian, standard deviation in percent of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(strength / 100 * min(image.size)))


def noise(image: Image.Image, strength: float, seed: int) -> Image.Image:
    """Gaussian, standard deviation in levels of 0..255, independent for each pixel and channel."""
    levels = np.asarray(image, dtype=np.float64)  # (H, W, 3)
    noisy = levels + strength * np.random.default_rng(seed).standard_normal(levels.shape)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, strength: float, seed: int) -> Image.Image:
    """JPEG compression of quality `strength` (1 is the worst)."""
    file = BytesIO()
    image.save(file, "JPEG", quality=round(strength))
    return Image.open(file).convert("RGB")


def crop(image: Image.Image, strength: float, seed: int) -> Image.Image:
    """Cuts off `strength` percent of width and height at a random place and scales the rest up again."""
    cut = np.array(image.size) * strength / 100
    left, top = np.random.default_rng(seed).random(2) * cut
    width, height = image.size - cut
    return image.resize(image.size, BICUBIC, box=(left, top, left + width, top + height))


def rotation(image: Image.Image, strength: float, seed: int) -> Image.Image:
    """Rotation by `strength` degrees to the left or to the right; empty corners get the image's mean colour."""
    sign = np.random.default_rng(seed).choice([-1, 1])
    mean = tuple(round(level) for level in ImageStat.Stat(image).mean)
    return image.rotate(sign * strength, BICUBIC, fillcolor=mean)


def small_text(image: Image.Image, strength: float, seed: int) -> Image.Image:
    """Scales the image down by `strength` and up again, which makes text `strength` times smaller."""
    small = tuple(max(round(side / strength), 1) for side in image.size)
    return image.resize(small, BICUBIC).resize(image.size, BICUBIC)


@dataclass(frozen=True)
class Perturbation:
    """apply: the function of the image; None if the question or the views change instead (measure.py).
    strengths: the default strengths, weakest first; empty for a change without strengths. unit: of the strengths."""

    strengths: tuple[float, ...]
    unit: str
    apply: Callable[[Image.Image, float, int], Image.Image] | None = None


REMOVED, SWAPPED, PGD, RANDOM = "removed", "swapped", "pgd", "random_signs"
PERTURBATIONS = {
    "blur": Perturbation((0.5, 1, 2, 4, 8), "standard deviation, % of the shorter side", blur),
    "noise": Perturbation((8, 16, 32, 64, 128), "standard deviation, levels of 0..255", noise),
    "jpeg": Perturbation((50, 25, 10, 5, 1), "quality", jpeg),
    "crop": Perturbation((10, 20, 30, 40, 50), "% of width and height cut off", crop),
    "rotation": Perturbation((5, 10, 20, 45, 90), "degrees", rotation),
    "small_text": Perturbation((2, 3, 4, 6, 8), "times smaller", small_text),
    PGD: Perturbation((1, 2, 4, 8), "epsilon, levels of 0..255"),
    RANDOM: Perturbation((1, 2, 4, 8), "epsilon, levels of 0..255"),
    REMOVED: Perturbation((), ""),
    SWAPPED: Perturbation((), ""),
}
