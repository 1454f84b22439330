"""Training pictures as ordinary files: PNGs in shards and LLaVA conversations in one JSON, for `omnifusion train`.

A shard appears when it is complete, so an interrupted run goes on where it stopped.
"""

import json
from multiprocessing import Pool
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from .canvas import Picture, sample_rng
from .files import finish_folder, write_json
from .questions import Turn, conversation
from .world import render

SHARD = 1000
MIXTURE = {"scene": 0.36, "digit": 0.12, "text": 0.3, "formula": 0.22}


def llava_sample(name: str, turns: list[Turn]) -> dict:
    """One LLaVA conversation; the picture stands in front of the first question."""
    said = []
    for i, turn in enumerate(turns):
        said.append({"from": "human", "value": ("" if i else "<image>\n") + turn.question})
        said.append({"from": "gpt", "value": turn.answer})
    return {"id": name, "image": f"{name}.png", "conversations": said}


def ask_about(split: str, picture: Picture, index: int) -> list[Turn]:
    return conversation(sample_rng(split, f"{picture.kind} questions", index), picture)


def write_shard(folder: Path, shard: int) -> None:
    """`SHARD` training pictures, the kinds in the mixture's proportions, and their conversations."""
    counts = {kind: round(share * SHARD) for kind, share in MIXTURE.items()}
    with finish_folder(folder / f"{shard:04d}") as part:
        samples = []
        for kind, count in counts.items():
            for index in range(shard * count, (shard + 1) * count):
                picture = render("train", kind, index)
                name = f"{shard:04d}/{kind}{index}"
                Image.fromarray(picture.image).save(part / f"{kind}{index}.png", compress_level=1)
                samples.append(llava_sample(name, ask_about("train", picture, index)))
        write_json(part / "samples.json", samples)


def write_dataset(folder: Path, first: int, last: int, processes: int = 1) -> Path:
    """Shards `first` to `last` (exclusive) and `train_<first>_<last>.json`, their conversations in one shuffled file."""
    missing = [(folder, s) for s in range(first, last) if not (folder / f"{s:04d}").exists()]
    with Pool(processes) as pool:
        for _ in tqdm(pool.imap_unordered(_write_shard, missing), total=len(missing), desc="pictures", unit="shard"):
            pass
    samples = [
        s for shard in range(first, last) for s in json.loads((folder / f"{shard:04d}/samples.json").read_text())
    ]
    sample_rng("train", "order", first).shuffle(samples)
    path = folder / f"train_{first}_{last}.json"
    write_json(path, samples)
    return path


def _write_shard(arguments: tuple[Path, int]) -> None:
    write_shard(*arguments)
