"""Mixtures and streams: how many samples each source gives, in an order of the seed alone; the paper's own tables."""

import shutil
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import conversations
import data_files
import datasets
import pytest
import tiny
from conversations import sample, turn
from torch.utils.data import DataLoader, IterableDataset
from training_runs import changed, rerun, resume, weights

from omnifusion_hf.io import RECIPES
from omnifusion_hf.training.conversations import BadSamples, BrokenSampleError, SampleReader
from omnifusion_hf.training.mixture import Mixture, SampleStream, Source, counts_of, load_data, read_mixture
from omnifusion_hf.training.preprocessing import ConversationEncoder, encode


datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # 5 seconds after each pass, also when that is garbage-collected
PROCESSOR = tiny.processor(tiny.config())


def write_source(folder: Path, name: str, size: int) -> Path:
    """A file of `size` questions without images; ids are the name and a number."""
    turns = [turn("human", "Sky?"), turn("gpt", "Blue.")]
    samples = [sample(index, id=f"{name}{index}", image=None, conversations=turns) for index in range(size)]
    (folder / name).mkdir(parents=True, exist_ok=True)
    return conversations.write(folder / name, samples)


def mix(folder: Path, seed: int = 0, **sizes_and_shares) -> Mixture:
    """A mixture file over sources a, b, …, each `(size, {"samples": …} or {"weight": …})`, loaded."""
    paths = {name: str(write_source(folder, name, size)) for name, (size, _) in sizes_and_shares.items()}
    entries = ({"path": paths[name], **share} for name, (_, share) in sizes_and_shares.items())
    return conversations.load(conversations.write_mixture(folder, *entries), seed=seed)


def ids(dataset, count: int | None = None) -> list[str]:
    return [item["name"].split("id ")[1].rstrip(")") for item in islice(dataset, count)]


def drawn(dataset) -> Counter:
    return Counter(name[0] for name in ids(dataset))


def test_counts_are_drawn_without_replacement_by_permutations_of_their_own_and_a_used_up_source_starts_over(tmp_path):
    names = ids(mix(tmp_path, a=(20, {"samples": 7}), b=(20, {"samples": 7}), c=(5, {}), d=(4, {"samples": 10})))
    assert Counter(name[0] for name in names) == {"a": 7, "b": 7, "c": 5, "d": 10}
    times = Counter(names)
    assert sorted(count for name, count in times.items() if name[0] == "d") == [2, 2, 3, 3]
    assert {count for name, count in times.items() if name[0] != "d"} == {1}
    first, second = ({name[1:] for name in names if name[0] == source} for source in "ab")
    assert first != second and first != {str(index) for index in range(7)}


def test_weights_share_out_as_many_samples_as_there_are_and_too_few_or_too_many_are_refused(tmp_path):
    assert drawn(mix(tmp_path, a=(30, {"weight": 1}), b=(10, {"weight": 3.0}))) == {"a": 10, "b": 30}
    assert drawn(mix(tmp_path, a=(30, {"weight": 3}), b=(10, {"weight": 0.1}))) == {"a": 39, "b": 1}
    too_little = r"mixture.yaml: .*b/samples.json: weight 0.01 of 3.01 is less than one sample"
    with pytest.raises(ValueError, match=too_little):
        mix(tmp_path, a=(30, {"weight": 3}), b=(10, {"weight": 0.01}))
    too_much = "mixture.yaml: .* 1,200,000,000 samples together"
    with data_files.in_little_time_and_memory(most_bytes=2**22), pytest.raises(ValueError, match=too_much):
        mix(tmp_path, a=(2, {"samples": 6 * 10**8}), b=(2, {"samples": 6 * 10**8}))


def test_streams_of_which_only_some_have_a_size_are_refused(tmp_path):
    paths = [str(write_source(tmp_path, name, 3)) for name in "ab"]
    sources = [{"path": path, "streaming": True, "samples": 9} for path in paths]
    assert conversations.load(conversations.write_mixture(tmp_path, *sources))  # control
    del sources[1]["samples"]
    with pytest.raises(ValueError, match="give `samples` to every source, or `weight`"):
        conversations.load(conversations.write_mixture(tmp_path, *sources))


def test_source_without_samples_is_named(tmp_path):
    tarfile.open(tmp_path / "none.tar", "w").close()
    sources = [{"path": str(write_source(tmp_path, "a", 3))}, {"path": str(tmp_path / "none.tar"), "samples": 3}]
    assert conversations.load(conversations.write_mixture(tmp_path, *sources[:1]))
    with pytest.raises(ValueError, match="mixture.yaml, source 1: .*none.tar holds no sample"):
        conversations.load(conversations.write_mixture(tmp_path, *sources))


def table(folder: Path, seed: int) -> list[str]:
    return ids(mix(folder, seed, a=(20, {"samples": 15}), b=(5, {})))


def streams(folder: Path, seed: int) -> list[str]:
    return ids(conversations.load(mixture_of(folder, a=3, b=1), seed=seed), 60)


@pytest.mark.parametrize("drawn", [table, streams])
def test_order_and_mix_are_a_function_of_the_seed_alone(tmp_path, drawn):
    first = drawn(tmp_path / "one", 1)
    assert drawn(tmp_path / "elsewhere", 1) == first != drawn(tmp_path / "one", 2)
    assert first != sorted(first)  # sources alternate
    assert 0.6 < sum(name[0] == "a" for name in first) / len(first) < 0.95


MISTAKEN = {
    "sources: []": "must hold one list", "seed: 1\nsources: [{path: a.json}]": "must hold one list",
    "[1]": "must hold one list", "sources: [{path: a.json}, {samples: 3}]": "source 1: needs `path`",
    "sources: [{path: 3}]": "'path' expected str, got int", "sources: [{path: a, path: b}]": 'duplicate key "path"',
    "sources: [{path: ''}]": "source 0: .*'path': .*must name a file, a folder or a Hub id",
    "sources: [{path: absent.json}]": "source 0: no file absent.json",
    "sources: [{path: a.parquet}]": "source 0: .*a.parquet", "sources: [{path: a-*.tar}]": "source 0: .*a-",
    "sources: [{path: absent.png}]": "source 0: cannot read absent.png: ",
    "sources: [{path: nobody/nothing}]": "source 0: cannot read nobody/nothing: ",
    "sources: [{path: a}, {path: b.json, samples: 1k}]": "source 1: .*'samples': .*'1k'.*<class 'int'>",
    "sources: [{path: a, weight: 1}, {path: b.json}]": "or a `weight` to every one",
    "sources: [{path: a, weight: 1}, {path: b.json, samples: 1}]": "or a `weight` to every one",
    "sources: [{path: a.parquet, streaming: true}, {path: b.json}]": "stream all sources or none",
    "sources: [": "is not YAML: ", f"samples: {'9' * 5000}": "is not YAML: ", "samples: 2026-99-99": "is not YAML: ",
    "\ufeffsources: []".encode("utf-16-le"): "is not UTF-8",
}  # fmt: skip
OF_A_FIELD = {
    "sample: 3": ".*'sample': 3", "samples: 0": ".*'samples': .*above 0 and at most 1,000,.* got 0",
    "samples: 1.5": ".*'samples'", "samples: true": ".*'samples'", "weight: -1": ".*'weight': .*above 0",
    "weight: .inf": ".*'weight': .*above 0", "weight: .nan": ".*'weight': .*above 0",
    "instructions: Say.": ".*'instructions' expected a list, got str", "instructions: [1]": ".*list 'instructions'",
    "instructions: null": ".*'instructions' expected a list, got NoneType", "columns: {images: 1}": ".*dict 'columns'",
    "columns: [caption]": ".*'columns' expected a dict, got list", "image_folder: 3": ".*'image_folder' with value 3",
    "streaming: no": ".*'streaming' expected bool, got str", "samples: 100000000000": ".* at most 1,000,",
    "conversation_format: x": ".*'conversation_format' expected one of .*llava",
    f"samples: 1{'0' * 400}": ".* at most 1,000,", f"weight: 1{'0' * 400}": ".* at most 1,000,",
}  # fmt: skip
MISTAKEN |= {f"sources: [{{path: a.json, {one}}}]": f"source 0: {message}" for one, message in OF_A_FIELD.items()}


@pytest.mark.parametrize(("text", "message"), MISTAKEN.items(), ids=range(len(MISTAKEN)))
def test_mistaken_mixtures_are_named_in_little_time_and_memory(tmp_path, monkeypatch, text, message):
    data_files.without_hub(monkeypatch)
    path = tmp_path / "mixture.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with (
        data_files.in_little_time_and_memory(most_bytes=2**22),
        pytest.raises(ValueError, match=rf"{path}.*{message}"),
    ):
        conversations.load(path)


def test_stage_1_is_the_papers_captions_with_its_three_instructions_and_stage_2_its_table():
    pretrain, sources = (
        read_mixture(str(RECIPES / f"data/{n}_mixture.yaml"), Source(n)) for n in ("pretrain", "finetune")
    )
    assert [source.samples for source in pretrain] == counts_of(pretrain, [0, 0]) == [695_000, 558_000]
    assert {len(set(source.instructions)) for source in pretrain} == {3}
    rows = {"sharegpt4v": 100, "vqa_coco": 20, "vqa_sam": 9, "webdata": 1.5, "textvqa ocrvqa": 120, "llava": 665}
    for row, thousands in (rows | {"docvqa": 20, "alpaca text_": 10}).items():
        starts = tuple(f"data/{name}" for name in row.split())
        assert sum(source.samples for source in sources if source.path.startswith(starts)) == thousands * 1000, row
    assert sum(counts_of(sources, [0] * len(sources))) == 945_500


def write_parquet(folder: Path, samples: list[dict], files: int = 2) -> Path:
    """Several parquet files, which are what a stream is shared out by; returns their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = data_files.hf_dataset(samples)
    for index in range(files):
        dataset.shard(files, index).to_parquet(folder / f"{index}.parquet")
    return folder / "*.parquet"


def mixture_of(folder: Path, **weights: float) -> Path:
    """A mixture file over streams whose samples' ids begin with their source's letter."""
    for name in weights:
        write_parquet(folder / name, [each | {"id": f"{name}{i}"} for i, each in enumerate(data_files.mixed())])
    paths = {name: str(folder / name / "*.parquet") for name in weights}
    entries = ({"path": paths[name], "streaming": True, "weight": weight} for name, weight in weights.items())
    return conversations.write_mixture(folder, *entries)


@pytest.mark.parametrize(("streaming", "share", "noted"), [(True, "weight", "weight"), (False, "samples", "drawn")])
def test_a_mixture_is_known_by_each_source_and_its_share(tmp_path, streaming, share, noted):
    rows, entries, parts = data_files.mixed(12), [], []
    for number in (3, 4):
        rows[0]["id"] = f"first of {number}"
        source = {"path": str(write_parquet(tmp_path / str(number), rows)), "streaming": streaming}
        entries.append(source | {share: number})
        parts += [known | {noted: number} for known in conversations.load(**source).identity()]
    assert conversations.load(conversations.write_mixture(tmp_path, *entries)).identity() == parts
    assert parts[0] != parts[1] | {noted: 3}  # control: the sources' content differs


@pytest.fixture
def stream(tmp_path) -> IterableDataset:
    return conversations.load(write_parquet(tmp_path, data_files.mixed()), streaming=True)


def test_stream_gives_the_samples_of_the_table_over_and_over(tmp_path, stream):
    shards = data_files.write_shards(tmp_path, [sample(index) for index in range(6)])  # all of one kind
    for each in (stream, conversations.load(shards, streaming=True)):
        assert sorted(ids(each, 6)) == [f"s{index}" for index in range(6)]
    passes = ids(stream, 18)
    assert Counter(Counter(passes).values()) == {3: 6} and passes[:6] != passes[6:12] != passes[12:]
    encoder = ConversationEncoder(PROCESSOR)
    encoded = {item["name"][-3:-1]: item for item in islice(encode(stream, encoder, BadSamples()), 6)}
    for item in conversations.load(tmp_path / "*.parquet"):
        assert encoded[item["name"][-3:-1]]["input_ids"] == encoder(item)["input_ids"]


def test_workers_share_the_files_out_and_none_may_go_without(tmp_path, stream):
    loader = DataLoader(stream, batch_size=1, num_workers=2, collate_fn=lambda items: items[0]["name"][-3:-1])
    assert sorted(islice(loader, 6)) == [f"s{index}" for index in range(6)]
    stream = conversations.load(write_parquet(tmp_path / "one", data_files.mixed(), files=1), streaming=True)
    with pytest.raises(ValueError, match="has 1 files for 2 workers; set dataloader_num_workers=1 or less"):
        next(iter(DataLoader(stream, num_workers=2)))


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
    assert 2 <= bad_samples.count <= 4  # two passes, the last one up to the sixth good sample
    assert r"(id s3): cannot read an image" in caplog.text and "(id s1): " in caplog.text
    with pytest.raises(BrokenSampleError, match=r"parquet, row \d .*\(id s[13]\)"):
        read(broken, "error")


def test_stream_that_breaks_off_is_named():
    def rows():
        yield from data_files.hf_dataset(data_files.mixed(72))
        raise TypeError("not a table")

    stream = datasets.IterableDataset.from_generator(rows)
    samples = SampleStream(stream, "owner/set", SampleReader(), 0, BadSamples("skip"))
    with pytest.raises(ValueError, match="cannot read on in owner/set: TypeError not a table"):
        list(islice(samples, 73))


def test_stream_of_which_nothing_can_be_used_ends(broken, monkeypatch):
    monkeypatch.setattr(BadSamples, "most_in_a_row", 20)
    encoder, bad_samples = ConversationEncoder(PROCESSOR, max_length=3), BadSamples("skip")
    stream = load_data(Source(str(broken), streaming=True), 0, bad_samples)  # both report to one object
    with pytest.raises(ValueError, match="20 broken samples in a row"):
        next(iter(encode(stream, encoder, bad_samples)))


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_over_a_mixture_of_streams_ends_with_the_weights_of_an_undisturbed_one(tmp_path, base, workers):
    data = mixture_of(tmp_path, a=3, b=1)
    recipe = conversations.write_recipe(tmp_path, base, data_path=str(data), dataloader_num_workers=workers)
    rerun(recipe)
    whole = weights(tmp_path / "out")
    for options in ([], ["ignore_data_skip=true"]):  # the second is the control
        shutil.rmtree(tmp_path / "out/checkpoint-4")
        (tmp_path / "out/model.safetensors").unlink()
        resume(recipe, *options)
        assert bool(changed(weights(tmp_path / "out"), whole)) == bool(options)
