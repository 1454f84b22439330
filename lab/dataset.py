"""Training data as files for `omnifusion train`: PNGs in shards, and LLaVA conversations in one JSON file.

A shard is written atomically, so an interrupted run continues where it stopped.
"""

import json
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from random import Random

from PIL import Image
from tqdm import tqdm

from omnifusion_hf.io import staged_folder, write_whole

from .canvas import sample_rng
from .questions import (
    SceneTurns,
    Turn,
    closing_turns,
    conversation,
    look_up_turns,
    relation_turns,
    scene_turns,
)
from .tokenizer import build_tokenizer
from .world import render


SHARD = 1000
PASSES = 6  # most conversations about an image; part of their seeds, so another number changes them all
BATCH, POOL = 32, 32
EVENLY = {"scene": 0.34, "digit": 0.1, "text": 0.3, "formula": 0.26}
MOSTLY_SCENES = {"scene": 0.62, "digit": 0.04, "text": 0.12, "formula": 0.22}
MOSTLY_FORMULAS = {"scene": 0.4, "digit": 0.04, "text": 0.14, "formula": 0.42}
SCENES_AND_FORMULAS = {"scene": 0.48, "digit": 0.04, "text": 0.12, "formula": 0.36}


@dataclass(frozen=True)
class Part:
    """Shards of one mixture, with `passes` conversations about each image, at most `PASSES`."""

    mixture: dict[str, float]
    shards: range
    passes: int
    about_scene: SceneTurns = scene_turns


# Stage 2 begins with an even mixture; then scenes, which are learnt last, get most of the samples; look-ups by shape,
# relations and captions come last (docs/lab.md).
PLANS = {
    "stage1": [Part(EVENLY, range(0, 8), 1)],
    "stage2": [
        Part(EVENLY, range(8, 20), 3),
        Part(MOSTLY_SCENES, range(100, 128), 4),
        Part(MOSTLY_SCENES, range(164, 192), 4, look_up_turns),
    ],
    "stage2_end": [
        Part(SCENES_AND_FORMULAS, range(200, 224), 4, relation_turns),
        Part(MOSTLY_FORMULAS, range(248, 272), 4, closing_turns),
    ],
}


def llava_sample(name: str, turns: list[Turn]) -> dict:
    """One LLaVA conversation; the image comes before the first question."""
    messages = []
    for i, turn in enumerate(turns):
        messages.append({"from": "human", "value": ("" if i else "<image>\n") + turn.question})
        messages.append({"from": "gpt", "value": turn.answer})
    return {"id": name, "image": f"{name}.png", "conversations": messages}


def write_shard(folder: Path, shard: int, plan: Part) -> None:
    """`SHARD` training images, the kinds in the mixture's proportions, and the conversations about each."""
    counts = {kind: round(share * SHARD) for kind, share in plan.mixture.items()}
    with staged_folder(folder / f"{shard:04d}") as part:
        passes = [[] for _ in range(plan.passes)]
        for kind, count in counts.items():
            for index in range(shard * count, (shard + 1) * count):
                drawing = render("train", kind, index)
                Image.fromarray(drawing.image).save(part / f"{kind}{index}.png", compress_level=1)
                for number, samples in enumerate(passes):
                    rng = sample_rng("train", f"{kind} questions", index * PASSES + number)
                    turns = conversation(rng, drawing, plan.about_scene)
                    samples.append(llava_sample(f"{shard:04d}/{kind}{index}", turns))
        write_whole(part / "passes.json", json.dumps(passes, indent=1))


def write_dataset(folder: Path, name: str, processes: int = 1) -> None:
    """The shards and `NAME.json`: the parts in order, each as batches of similar length in random order."""
    ordered = []
    for part in PLANS[name]:
        missing = [(folder, shard, part) for shard in part.shards if not (folder / f"{shard:04d}").exists()]
        with Pool(processes) as pool:
            for _ in tqdm(pool.imap_unordered(_write_shard, missing), total=len(missing), desc=name, unit="shard"):
                pass
        drawn = [json.loads((folder / f"{s:04d}/passes.json").read_text()) for s in part.shards]
        rng = sample_rng("train", f"order of {name}", part.shards.start)
        for number in range(part.passes):
            ordered += in_batches([sample for shard in drawn for sample in shard[number]], rng)
    write_whole(folder / f"{name}.json", json.dumps(ordered, indent=1))


def in_batches(samples: list[dict], rng: Random) -> list[dict]:
    """A random order in which the samples of a batch have similar lengths, which halves the padding."""
    tokenizer = build_tokenizer()
    rng.shuffle(samples)
    texts = ["".join(turn["value"] for turn in sample["conversations"]) for sample in samples]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    ordered = []
    for start in range(0, len(samples), POOL * BATCH):
        pool = sorted(range(start, min(start + POOL * BATCH, len(samples))), key=lambda i: lengths[i])
        batches = [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
        rng.shuffle(batches)
        ordered += [samples[i] for batch in batches for i in batch]
    return ordered


def _write_shard(arguments: tuple[Path, int, Part]) -> None:
    write_shard(*arguments)
