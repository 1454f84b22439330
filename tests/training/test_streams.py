"""Streams: shuffled and mixed by the seed, shared out to workers, broken samples left out, resumed exactly."""

import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import conversations
import data_files
import datasets
import pytest
import tiny
import yaml
from accelerate.data_loader import IterableDatasetShard
from conversations import sample
from safetensors.torch import load_file
from torch.utils.data import DataLoader, IterableDataset

from omnifusion_hf.training.arguments import parse_recipe
from omnifusion_hf.training.conversations import BadSamples, BrokenSampleError, SampleReader
from omnifusion_hf.training.preprocessing import ConversationEncoder, encode
from omnifusion_hf.training.streams import SampleStream
from omnifusion_hf.training.train import train


datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # 5 seconds after each pass, also when that is garbage-collected
PROCESSOR = tiny.processor(tiny.config())


def write_parquet(folder: Path, samples: list[dict], files: int = 2) -> Path:
    """Several parquet files, which are what a stream is shared out by; returns their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = data_files.hf_dataset(samples)
    for index in range(files):
        dataset.shard(files, index).to_parquet(folder / f"{index}.parquet")
    return folder / "*.parquet"


def mixture_of(folder: Path, **weights: float) -> Path:
    """A mixture file over streams whose samples' ids begin with their source's letter."""
    entries = []
    for name, weight in weights.items():
        samples = [each | {"id": f"{name}{index}"} for index, each in enumerate(data_files.mixed())]
        path = write_parquet(folder / name, samples)
        entries.append({"path": str(path), "streaming": True, "weight": weight})
    (folder / "mixture.yaml").write_text(yaml.safe_dump({"sources": entries}))
    return folder / "mixture.yaml"


def ids(stream, count: int) -> list[str]:
    return [item["name"].split("id ")[1].rstrip(")") for item in islice(stream, count)]


def test_stream_gives_the_samples_of_the_table_over_and_over(tmp_path):
    path = write_parquet(tmp_path, data_files.mixed())
    stream = conversations.load(path, streaming=True)
    assert isinstance(stream, IterableDataset)
    assert sorted(ids(stream, 6)) == [f"s{index}" for index in range(6)]
    passes = ids(stream, 18)
    assert Counter(Counter(passes).values()) == {3: 6} and passes[:6] != passes[6:12] != passes[12:]
    encoder = ConversationEncoder(PROCESSOR)
    encoded = {item["name"][-3:-1]: item for item in islice(encode(stream, encoder, BadSamples()), 6)}
    for item in conversations.load(path):
        assert encoded[item["name"][-3:-1]]["input_ids"] == encoder(item)["input_ids"]


def test_order_and_mix_are_functions_of_the_seed(tmp_path):
    path = mixture_of(tmp_path, a=3, b=1)
    first = ids(conversations.load(path, seed=1), 60)
    assert ids(conversations.load(path, seed=1), 60) == first
    assert ids(conversations.load(path, seed=2), 60) != first
    assert 0.6 < sum(name[0] == "a" for name in first) / 60 < 0.95


def test_workers_share_the_files_out_and_none_may_go_without(tmp_path):
    stream = conversations.load(write_parquet(tmp_path, data_files.mixed()), streaming=True)
    loader = DataLoader(stream, batch_size=1, num_workers=2, collate_fn=lambda items: items[0]["name"][-3:-1])
    assert sorted(islice(loader, 6)) == [f"s{index}" for index in range(6)]
    stream = conversations.load(write_parquet(tmp_path / "one", data_files.mixed(), files=1), streaming=True)
    with pytest.raises(ValueError, match="has 1 files .* 2 workers; set dataloader_num_workers=1 or less"):
        next(iter(DataLoader(stream, num_workers=2)))


def test_devices_share_the_samples_out(tmp_path):
    stream = conversations.load(write_parquet(tmp_path, data_files.mixed()), streaming=True)
    shards = [IterableDatasetShard(stream, batch_size=2, num_processes=2, process_index=rank) for rank in (0, 1)]
    first, second = (ids(shard, 4) for shard in shards)
    assert [*first[:2], *second[:2], *first[2:], *second[2:]] == ids(stream, 8)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A stream of which sample 3's image is cut off and sample 1 is too long."""
    whole = data_files.png(0)
    monkeypatch.setattr(data_files, "png", lambda seed: whole[:200] if seed == 3 else whole)
    samples = [sample(index) for index in range(5)]
    samples[1]["conversations"][1]["value"] = "Because. " * 200
    return write_parquet(tmp_path, samples)


def read(path: Path, policy: str) -> tuple[list[str], BadSamples]:
    encoder, bad_samples = ConversationEncoder(PROCESSOR, max_length=120), BadSamples(policy)
    return ids(encode(conversations.load(path, policy=policy, streaming=True), encoder, bad_samples), 6), bad_samples


def test_broken_samples_are_errors_or_left_out(broken, caplog):
    names, bad_samples = read(broken, "skip")
    assert Counter(names) == {"s0": 2, "s2": 2, "s4": 2}
    assert 1 <= bad_samples.count <= 2  # the too long one; the image is counted where samples are read
    assert r"(id s3): cannot read an image" in caplog.text and "(id s1) has" in caplog.text
    with pytest.raises(BrokenSampleError, match=r"parquet, row \d .*\(id s[13]\)"):
        read(broken, "error")


def test_stream_that_breaks_off_is_named(tmp_path):
    def rows():
        yield from data_files.hf_dataset(data_files.mixed(12))
        raise TypeError("not a table")

    stream = datasets.IterableDataset.from_generator(rows)
    samples = SampleStream(stream, "owner/set", SampleReader(), 0, BadSamples("skip"))
    with pytest.raises(ValueError, match="cannot read on in owner/set: TypeError not a table"):
        list(islice(samples, 13))


def test_stream_of_which_nothing_can_be_used_ends(broken, monkeypatch):
    monkeypatch.setattr(BadSamples, "most_in_a_row", 20)
    encoder = ConversationEncoder(PROCESSOR, max_length=3)
    with pytest.raises(ValueError, match="20 broken samples in a row"):
        next(iter(encode(conversations.load(broken, policy="skip", streaming=True), encoder, BadSamples("skip"))))


def test_shards_of_one_kind_of_sample_stream(tmp_path):
    path = data_files.write_shards(tmp_path, [sample(index) for index in range(6)])
    assert sorted(ids(conversations.load(path, streaming=True), 6)) == [f"s{index}" for index in range(6)]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return conversations.write_model(tmp_path_factory.mktemp("base"))


def final_weights(recipe: Path, *overrides: str) -> dict:
    model_data, args = parse_recipe(recipe, overrides)
    train(model_data, args)
    return load_file(Path(args.output_dir) / "model.safetensors")


def equal(one: dict, other: dict) -> bool:
    return all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [True, False])
def test_resumed_run_over_a_mixture_ends_with_the_weights_of_an_undisturbed_one(tmp_path, base, streaming, workers):
    path = mixture_of(tmp_path, a=3, b=1)
    path.write_text(path.read_text().replace("streaming: true", f"streaming: {str(streaming).lower()}"))
    recipe = conversations.write_recipe(tmp_path, base, data_path=str(path), dataloader_num_workers=workers)
    whole = final_weights(recipe)
    shutil.rmtree(tmp_path / "out/checkpoint-4")
    (tmp_path / "out/model.safetensors").unlink()
    assert equal(final_weights(recipe, "resume_from_checkpoint=true"), whole)
    shutil.rmtree(tmp_path / "out/checkpoint-4")
    assert not equal(final_weights(recipe, "resume_from_checkpoint=true", "ignore_data_skip=true"), whole)
