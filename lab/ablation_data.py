"""Training data of lab.ablations in the LLaVA format. Images are rendered once; each seed draws conversations and
their order.
"""

import json
from pathlib import Path
from random import Random

from PIL import Image
from tqdm import tqdm

from omnifusion_hf.io import staged_folder, write_whole

from .canvas import sample_rng
from .dataset import in_batches, llava_sample
from .small import conversation_about, render_small


# plain: images of the shards of `python -m lab --only images`, without formulas, whose answers are long
PLAIN_SHARDS = (*range(8, 14), *range(100, 112))
PLAIN_MIXTURE = {"scene": 0.5, "text": 0.35, "digit": 0.15}
PASSES = 2
SMALL_IMAGES = 6000  # of each kind
SMALL_KINDS = ("scene", "text")


def plain_samples(images: Path, rng: Random, count: int) -> list[dict]:
    """About `count` conversations in the proportions of `PLAIN_MIXTURE`."""
    pool = {kind: [] for kind in PLAIN_MIXTURE}
    for shard in PLAIN_SHARDS:
        for samples in json.loads((images / f"{shard:04d}/passes.json").read_text())[:PASSES]:
            for sample in samples:
                kind = sample["id"].split("/")[1].rstrip("0123456789")
                if kind in pool:
                    pool[kind].append(sample)
    return [s for kind, share in PLAIN_MIXTURE.items() for s in rng.sample(pool[kind], round(share * count))]


def write_small_images(folder: Path) -> None:
    """`SMALL_IMAGES` of each kind, and in `samples.json` `PASSES` conversations about each, with its boxes."""
    with staged_folder(folder) as part:
        samples = {kind: [] for kind in SMALL_KINDS}
        for index in tqdm(range(SMALL_IMAGES), desc="small images"):
            for kind in SMALL_KINDS:
                drawing = render_small("train", kind, index)
                Image.fromarray(drawing.image).save(part / f"{kind}{index}.png", compress_level=1)
                for number in range(PASSES):
                    rng = sample_rng("train", f"small {kind} questions", index * PASSES + number)
                    sample = llava_sample(f"{kind}{index}", conversation_about(rng, drawing))
                    samples[kind].append(sample | {"regions": [drawing.facts["boxes"]]})
        write_whole(part / "samples.json", json.dumps(samples))


def small_samples(images: Path, rng: Random, count: int, regions: bool) -> list[dict]:
    """`count` conversations, half about scenes and half about words; with the boxes of things where `regions`."""
    pool = json.loads((images / "samples.json").read_text())
    drawn = [sample for samples in pool.values() for sample in rng.sample(samples, count // len(pool))]
    return drawn if regions else [{k: v for k, v in sample.items() if k != "regions"} for sample in drawn]


def write_stage(path: Path, samples: list[dict], rng: Random) -> None:
    write_whole(path, json.dumps(in_batches(samples, rng)))
