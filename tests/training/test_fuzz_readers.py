"""Files and rows of any shape: readers give samples or the one error that names the place, in little memory.

`FUZZ_EXAMPLES=100000 pytest tests/training/test_fuzz_readers.py` runs longer, on other inputs each time.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import conversations
import data_files
import pytest
import yaml

from omnifusion_hf.evaluation.answers import Answer, read_answers
from omnifusion_hf.evaluation.questions import read_questions
from omnifusion_hf.training.conversations import BrokenSampleError, SampleReader
from omnifusion_hf.training.mixture import Source, read_mixture


pytest.importorskip("hypothesis", reason="pip install hypothesis; readers were not fuzzed")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402


EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
options = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("readers", max_examples=int(EXAMPLES or 120), derandomize=not EXAMPLES, **options)
settings.load_profile("readers")

KEYS = "id image images conversations messages caption regions from value role content type text bytes path".split()
KEYS += ["videos", "system", "task"]
WORDS = [*"human gpt user assistant system text image 0.png".split(), "<image>", "<image>\nq", "\ud800", ""]
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -1, 2**63, 1e308]))
leaves = st.one_of(st.none(), st.booleans(), numbers, st.sampled_from(WORDS), st.text(max_size=6))
names = st.one_of(st.sampled_from(KEYS), st.text(max_size=3))


containers = lambda of: st.one_of(st.lists(of, max_size=4), st.dictionaries(names, of, max_size=5))  # noqa: E731
values = st.recursive(leaves, containers, max_leaves=12)
turns = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt"]), "value": st.one_of(st.sampled_from(WORDS), values)},
    optional={"role": values, "x": values},
)
rows = st.one_of(
    values,
    st.fixed_dictionaries(
        {"conversations": st.one_of(st.lists(turns, max_size=4), values)},
        optional={"id": values, "image": values, "images": values, "regions": values, "caption": values, "x": values},
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """With a whole file of each kind in it."""
    folder = tmp_path_factory.mktemp("fuzz")
    samples = data_files.mixed(4)
    data_files.write_jsonl(folder, samples)
    data_files.write_shards(folder, samples)
    conversations.write_mixture(folder, {"path": str(folder / "samples.json")})
    (folder / "answers.jsonl").write_text(Answer("n", "t", "q", [], ["a"], "a", 1.0).as_line() * 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # `path: text` is every file of the current folder
        data_files.without_hub(patch)
        yield folder


MUTATIONS = [b"", b"\0", b"\xff\xfe", b"[" * 5000, b"9" * 5000, b"1e999", b'"', b"}", b"\x80\0\0\xff", b"7" * 12]


@st.composite
def mutated(draw, whole: bytes) -> bytes:
    """A few pieces of the file replaced, the rest of it cut off, or all of it in another encoding."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 20))
        content[start : start + length] = draw(st.one_of(st.sampled_from(MUTATIONS), st.binary(max_size=20)))
    end = draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    if draw(st.integers(0, 9)) == 0:
        return bytes(content).decode("latin-1").encode("utf-16")
    return bytes(content[:end])


@given(data=st.data(), kind=st.sampled_from(["samples.json", "samples.jsonl", "shard-0.tar"]))
def test_damaged_files_give_samples_or_errors_that_name_them(folder, data, kind):
    path = folder / f"damaged{Path(kind).suffix}"
    path.write_bytes(data.draw(mutated((folder / kind).read_bytes())))
    with data_files.in_little_time_and_memory():
        data_files.read_all(path, data.draw(st.sampled_from(["error", "skip"])))


@given(data=st.data())
def test_damaged_heads_of_shards_are_named(folder, data):
    """Any field of a member's header, its check sum made right again: kinds, sizes below 0 and of terabytes."""
    path, content = folder / "heads.tar", bytearray((folder / "shard-0.tar").read_bytes())
    with tarfile.open(folder / "shard-0.tar") as tar:
        offset = data.draw(st.sampled_from([member.offset for member in tar]))
    head = content[offset : offset + 512]
    kinds = st.sampled_from([*b"01234567gxLKSDNVX\0"])
    sizes = st.sampled_from([b"\xff" * 12, b"\x80" + b"\0" * 5 + b"\xff" * 6, b"77777777777\0", b"-0000000001\0"])
    for start, field in [(156, kinds.map(lambda kind: bytes([kind]))), (124, sizes), (386, st.binary(max_size=99))]:
        if data.draw(st.booleans()):
            drawn = data.draw(field)
            head[start : start + len(drawn)] = drawn
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    content[offset : offset + 512] = head
    path.write_bytes(content)
    with data_files.in_little_time_and_memory():
        data_files.read_all(path, data.draw(st.sampled_from(["error", "skip"])))


@given(row=rows, options=st.sampled_from([{}, {"instructions": ["Say."]}, {"columns": {"caption": "id"}}]))
def test_rows_of_any_shape_are_read_or_named(folder, row, options):
    reader = SampleReader(image_folder=folder, **options)
    try:
        assert conversations.opened(reader(row, "here, row 0"))["messages"]
    except BrokenSampleError as error:
        assert str(error).startswith("here, row 0")


@given(content=st.lists(rows, min_size=1, max_size=3))
def test_samples_of_any_shape_are_read_or_named_in_every_kind_of_file(folder, content):
    (folder / "any.json").write_text(json.dumps(content))
    (folder / "any.jsonl").write_text("\n".join(map(json.dumps, content)))
    with tarfile.open(folder / "any.tar", "w") as tar:
        for index, row in enumerate(content):
            data_files.add_sample(tar, f"k{index}", {"json": json.dumps(row).encode()})
    for name in ("any.json", "any.jsonl", "any.tar"):
        data_files.read_all(folder / name, policy="skip")


fields = "path image_folder samples weight subset split columns ignored instructions conversation_format".split()
entries = st.dictionaries(st.sampled_from([*fields, "path"]), values, max_size=4)
mixtures = st.one_of(values, st.fixed_dictionaries({"sources": st.lists(entries, max_size=3)}))


@given(content=mixtures, real=st.booleans())
def test_mixtures_of_any_shape_are_read_or_named(folder, content, real):
    path = folder / "any.yaml"
    if real and isinstance(content, dict) and isinstance(content.get("sources"), list):
        whole = {"path": str(folder / "samples.json")}
        content["sources"] = [whole | {"samples": 2, **entry, **whole} for entry in content["sources"]]
    path.write_text(yaml.dump(content, allow_unicode=False))
    with data_files.in_little_time_and_memory():
        try:
            len(conversations.load(path, policy="skip"))
        except ValueError as error:
            assert str(path) in str(error)


@given(data=st.data())
def test_damaged_mixtures_questions_and_answers_are_named(folder, data):
    kinds = {"samples.jsonl": read_questions, "answers.jsonl": read_answers}
    kinds["mixture.yaml"] = lambda path: read_mixture(str(path), Source("any"))  # its paths may be the root folder
    for name, read in kinds.items():
        path = folder / f"damaged-{name}"
        path.write_bytes(data.draw(mutated((folder / name).read_bytes())))
        try:
            read(path)
        except ValueError as error:
            assert str(path) in str(error)


def test_control_whole_files_are_read(folder):
    for name in ("samples.json", "samples.jsonl", "shard-0.tar", "mixture.yaml"):
        assert data_files.read_all(folder / name) == 4
    assert len(read_answers(folder / "answers.jsonl")) == 3
