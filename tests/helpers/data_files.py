"""The same samples in every format that training reads: LLaVA JSON and JSONL, tar shards, datasets, parquet."""

import io
import json
import re
import signal
import tarfile
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import conversations
import pytest
import tiny
from conversations import turn
from datasets import Dataset, Features, Image, List, Value
from pixels import encoded

from omnifusion_hf.training.conversations import BrokenSampleError


DEEP = "[" * 200_000  # JSON and YAML on which Python's readers raise RecursionError


def png(seed: int) -> bytes:
    return encoded(tiny.image(seed), "PNG")


def mixed(count: int = 6) -> list[dict]:
    """LLaVA samples with one, no and two images in turn, the last kind with two questions."""
    samples = [conversations.sample(index) for index in range(count)]
    for index in range(1, count, 3):
        samples[index] |= {"image": None, "conversations": [turn("human", f"Why {index}?"), turn("gpt", "So.")]}
    for index in range(2, count, 3):
        more = [turn("human", "And <image>?"), turn("gpt", "Green.")]
        samples[index]["image"] = [f"{index}.png", f"{index - 1}.png"]
        samples[index]["conversations"] = samples[index]["conversations"] + more
    return samples


def image_files(sample: dict) -> list[bytes]:
    names = sample["image"] or []
    return [png(int(Path(name).stem)) for name in ([names] if isinstance(names, str) else names)]


def write_jsonl(folder: Path, samples: list[dict]) -> Path:
    conversations.write(folder, samples)
    path = folder / "samples.jsonl"
    path.write_text("\n\n".join(json.dumps(each, ensure_ascii=False) for each in samples), encoding="utf-8")
    return path


def write_shards(folder: Path, samples: list[dict], per_shard: int = 4) -> Path:
    """Writes WebDataset shards; returns the pattern that names them all."""
    for start in range(0, len(samples), per_shard):
        with tarfile.open(folder / f"shard-{start // per_shard}.tar", "w") as tar:
            for sample in samples[start : start + per_shard]:
                add_sample(tar, sample["id"], {"json": json.dumps(sample).encode()}, image_files(sample))
    return folder / "shard-*.tar"


def add_sample(tar: tarfile.TarFile, key: str, members: dict[str, bytes], images: list[bytes] = ()):
    for name, content in [*members.items(), *((f"{i}.png", image) for i, image in enumerate(images))]:
        member = tarfile.TarInfo(f"train/{key}.{name}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def hf_dataset(samples: list[dict]) -> Dataset:
    """Columns id, messages (content as a list of parts) and images."""
    rows, roles = [], {"human": "user", "gpt": "assistant"}
    for sample in samples:
        turns = sample["conversations"]
        messages = [{"role": roles[each["from"]], "content": parts(each["value"])} for each in turns]
        images = [{"bytes": each, "path": None} for each in image_files(sample)]
        rows.append({"id": sample["id"], "messages": messages, "images": images})
    part = {"type": Value("string"), "text": Value("string")}
    messages = List({"role": Value("string"), "content": List(part)})
    features = Features({"id": Value("string"), "messages": messages, "images": List(Image())})
    return Dataset.from_list(rows, features=features)


def parts(text: str) -> list[dict]:
    """LLaVA's text as a chat message's parts."""
    image = {"type": "image", "text": None}
    pieces = re.split(r"(<image>)\n?", text)
    return [image if piece == "<image>" else {"type": "text", "text": piece} for piece in pieces if piece]


def without_hub(patch: pytest.MonkeyPatch):
    """Names of the Hub fail at once instead of after retries."""
    for module in ("huggingface_hub.constants", "datasets.config"):
        patch.setattr(f"{module}.HF_HUB_OFFLINE", True)


@contextmanager
def in_little_time_and_memory(seconds: int = 20, most_bytes: int = 2**28):
    tracemalloc.start()
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("a reader hangs"))
    signal.alarm(seconds)
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        tracemalloc.stop()


def read_all(path: Path, policy: str = "error") -> int:
    """How many samples were read; of errors, that each begins with the file's name."""
    read = 0
    try:
        dataset = conversations.load(path, policy=policy)
    except ValueError as error:
        assert str(path) in str(error) and str(error).count("\n") == 0
        return 0
    for index in range(len(dataset)):
        try:
            read += bool(conversations.opened(dataset[index]))
        except BrokenSampleError as error:
            assert str(error).startswith(str(path))
    return read
