"""Mixtures: how many samples each source gives, in an order of the seed alone; the paper's own tables."""

import tarfile
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import conversations
import data_files
import pytest
import yaml
from conversations import sample, turn

from omnifusion_hf.training.mixture import Mixture, Source, counts_of, read_mixture


RECIPES = Path(__file__).parents[2] / "omnifusion_hf/recipes/data"


def write_source(folder: Path, name: str, size: int) -> Path:
    """A file of `size` questions without images; ids are the name and a number."""
    turns = [turn("human", "Sky?"), turn("gpt", "Blue.")]
    samples = [sample(index, id=f"{name}{index}", image=None, conversations=turns) for index in range(size)]
    (folder / name).mkdir(parents=True, exist_ok=True)
    return conversations.write(folder / name, samples)


def mix(folder: Path, seed: int = 0, **sizes_and_shares) -> Mixture:
    """A mixture file over sources a, b, …, each `(size, {"samples": …} or {"weight": …})`, loaded."""
    entries = [
        {"path": str(write_source(folder, name, size)), **share} for name, (size, share) in sizes_and_shares.items()
    ]
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump({"sources": entries}), encoding="utf-8")
    return conversations.load(path, seed=seed)


def ids(dataset) -> list[str]:
    return [item["name"].split("id ")[1].rstrip(")") for item in dataset]


def drawn(dataset) -> Counter:
    return Counter(name[0] for name in ids(dataset))


def test_counts_are_drawn_without_replacement(tmp_path):
    names = ids(mix(tmp_path, a=(20, {"samples": 7}), b=(5, {})))
    assert len(set(names)) == len(names) == 12
    assert Counter(name[0] for name in names) == {"a": 7, "b": 5}
    assert {name for name in names if name[0] == "a"} != {f"a{index}" for index in range(7)}


def test_source_that_is_used_up_starts_over(tmp_path):
    times = Counter(ids(mix(tmp_path, a=(4, {"samples": 10}))))
    assert sorted(times.values()) == [2, 2, 3, 3]


def test_weights_share_out_as_many_samples_as_there_are(tmp_path):
    assert drawn(mix(tmp_path, a=(30, {"weight": 1}), b=(10, {"weight": 3.0}))) == {"a": 10, "b": 30}


def test_weight_of_less_than_a_sample_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"b/samples.json: weight 0.01 of 3.01 is no sample out of 40"):
        mix(tmp_path, a=(30, {"weight": 3}), b=(10, {"weight": 0.01}))
    assert drawn(mix(tmp_path, a=(30, {"weight": 3}), b=(10, {"weight": 0.1}))) == {"a": 39, "b": 1}


def test_source_without_samples_is_named(tmp_path):
    tarfile.open(tmp_path / "none.tar", "w").close()
    path = tmp_path / "mixture.yaml"
    sources = [{"path": str(write_source(tmp_path, "a", 3))}, {"path": str(tmp_path / "none.tar"), "samples": 3}]
    for number, expected in ((2, "none.tar holds no sample"), (1, None)):
        path.write_text(yaml.safe_dump({"sources": sources[:number]}))
        with pytest.raises(ValueError, match=expected) if expected else nullcontext():
            conversations.load(path)


def test_order_is_a_function_of_the_seed_alone(tmp_path):
    sources = {"a": (20, {"samples": 7}), "b": (5, {})}
    first = ids(mix(tmp_path / "one", seed=1, **sources))
    assert ids(mix(tmp_path / "elsewhere", seed=1, **sources)) == first
    assert ids(mix(tmp_path / "one", seed=2, **sources)) != first
    assert first != sorted(first)  # sources alternate


INSTRUCTIONS = ["Describe it.", "What is it?", "Say it."]


def questions(folder: Path, seed: int = 0) -> dict[str, str]:
    """The question that each caption of a LLaVA file gets."""
    dataset = conversations.load(folder / "samples.json", seed=seed, instructions=INSTRUCTIONS)
    pairs = [[part.get("text") for message in item["messages"] for part in message["content"]] for item in dataset]
    return {caption: question for _, question, caption in pairs}


def test_question_of_a_caption_is_drawn_by_seed_and_caption(tmp_path):
    captions = [turn("gpt", f"A sky, image {index}.") for index in range(40)]
    samples = [sample(index, conversations=[turn("human", "<image>\nOwn?"), captions[index]]) for index in range(40)]
    conversations.write(tmp_path, samples)
    first = questions(tmp_path)
    assert set(first.values()) == set(INSTRUCTIONS)
    conversations.write(tmp_path, samples[::-1])
    assert questions(tmp_path) == first
    assert questions(tmp_path, seed=1) != first


def test_dialogue_of_several_answers_is_no_caption(tmp_path):
    turns = sample(0)["conversations"]
    path = conversations.write(tmp_path, [sample(0, conversations=turns * 2, image=["0.png", "0.png"])])
    assert len(conversations.load(path)) == 1
    with pytest.raises(ValueError, match="sample 0 .*instructions are for captions"):
        conversations.load(path, instructions=INSTRUCTIONS)


def test_broken_sample_of_a_source_is_named_or_left_out(tmp_path):
    good, bad = write_source(tmp_path, "a", 3), conversations.write(tmp_path, [sample(0), sample(1, image="no.png")])
    path = tmp_path / "mixture.yaml"
    path.write_text(yaml.safe_dump({"sources": [{"path": str(good)}, {"path": str(bad)}]}))
    with pytest.raises(ValueError, match=rf"{bad}, sample 1 \(id s1\): no image file .*no\.png"):
        conversations.load(path)
    assert sorted(ids(conversations.load(path, policy="skip"))) == ["a0", "a1", "a2", "s0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: []", "must hold one list"),
        ("seed: 1\nsources: [{path: a.json}]", "must hold one list"),
        ("[1]", "must hold one list"),
        ("sources: [{path: a.json}, {samples: 3}]", "source 1: needs `path`"),
        ("sources: [{path: a.json, sample: 3}]", "source 0: .*'sample': 3"),
        ("sources: [{path: a.json, samples: 0}]", "source a.json: samples must be a whole number"),
        ("sources: [{path: a.json, samples: 1k}]", "source a.json: samples"),
        ("sources: [{path: a.json, weight: -1}]", "source a.json: weight"),
        ("sources: [{path: a.json, instructions: Describe.}]", "source a.json: instructions must be a list"),
        ("sources: [{path: a.json, instructions: [1]}]", "source a.json: instructions must be a list of texts"),
        ("sources: [{path: a.json, instructions: null}]", "source a.json: instructions must be a list of texts"),
        ("sources: [{path: a.json, columns: [caption]}]", "source a.json: columns must be lines `our name: theirs`"),
        ("sources: [{path: a.json, columns: {images: 1}}]", "source a.json: columns must be lines"),
        ("sources: [{path: a.json, streaming: no}]", "source a.json: streaming must be true or false"),
        ("sources: [{path: a.json, image_folder: 3}]", "source a.json: path, image_folder, subset and split must be"),
        ("sources: [{path: 3}]", "source 3: path, image_folder"),
        ("sources: [{path: a.json, weight: .inf}]", "source a.json: weight must be a number above 0"),
        ("sources: [{path: a.json, path: b.json}]", 'duplicate key "path"'),
        ("sources: [{path: a.json, conversation_format: x}]", "source a.json: conversation_format"),
        ("sources: [{path: a.json, weight: 1}, {path: b.json}]", "or a `weight` to every one"),
        ("sources: [{path: a.json, weight: 1}, {path: b.json, samples: 1}]", "or a `weight` to every one"),
        ("sources: [{path: a.parquet, streaming: true}, {path: b.json}]", "stream all sources or none"),
        ("sources: [", "is not YAML"),
    ],
)
def test_mistaken_mixtures_are_named(tmp_path, text, message):
    path = tmp_path / "mixture.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        conversations.load(path)


def paper_table(name: str) -> tuple[list[Source], int]:
    sources = read_mixture(str(RECIPES / f"{name}_mixture.yaml"), Source(""))
    return sources, sum(counts_of(sources, [0] * len(sources)))


def test_stage_1_is_the_papers_captions_with_its_three_instructions():
    sources, total = paper_table("pretrain")
    assert ([source.samples for source in sources], total) == ([695_000, 558_000], 1_253_000)
    assert {len(set(source.instructions)) for source in sources} == {3}


def test_stage_2_is_the_papers_table():
    sources, total = paper_table("sft")
    rows = {"sharegpt4v": 100, "vqa_coco": 20, "vqa_sam": 9, "webdata": 1.5, "textvqa ocrvqa": 120, "llava": 665}
    rows |= {"docvqa": 20, "alpaca text_": 10}
    for row, thousands in rows.items():
        starts = tuple(f"data/{name}" for name in row.split())
        assert sum(source.samples for source in sources if source.path.startswith(starts)) == thousands * 1000, row
    assert total == 945_500


@pytest.mark.parametrize("field", ["samples: 100000000000", f"samples: 1{'0' * 400}", f"weight: 1{'0' * 400}"])
def test_more_samples_than_memory_holds_are_refused_before_it_is_taken(tmp_path, field):
    path = tmp_path / "huge.yaml"
    path.write_text(f"sources: [{{path: {tmp_path}/samples.json, {field}}}]")
    with (
        data_files.in_little_time_and_memory(most_bytes=2**22),
        pytest.raises(ValueError, match=r"huge\.yaml: .* at most 1,000,"),
    ):
        conversations.load(path)


def test_sources_that_are_too_much_together_are_refused_too(tmp_path):
    with data_files.in_little_time_and_memory(), pytest.raises(ValueError, match="1,200,000,000 samples together"):
        mix(tmp_path, a=(2, {"samples": 6 * 10**8}), b=(2, {"samples": 6 * 10**8}))


@pytest.mark.parametrize("content", [f"samples: {'9' * 5000}", f"samples: {data_files.DEEP}", "samples: 2026-99-99"])
def test_yaml_that_python_cannot_read_is_named(tmp_path, content):
    path = tmp_path / "odd.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"odd\.yaml is not YAML: "):
        conversations.load(path)
    path.write_text("sources: []", encoding="utf-16")
    with pytest.raises(ValueError, match=r"odd\.yaml is not UTF-8"):
        conversations.load(path)
