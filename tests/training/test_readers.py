"""One loader: the same samples come out of every format, lazily, and what is broken is named by file and index."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import conversations
import data_files
import pytest
import tiny
from conversations import opened, sample
from PIL import Image

from omnifusion_hf.training.conversations import DESCRIBE, BrokenSampleError
from omnifusion_hf.training.readers import row_of_members


SAMPLES = data_files.mixed()


def contents(dataset) -> list[tuple]:
    """Everything but where a sample comes from."""
    found = []
    for item in dataset:
        parts = [(m["role"], part) for m in opened(item)["messages"] for part in m["content"]]
        shown = [(role, part["image"].tobytes() if "image" in part else part["text"]) for role, part in parts]
        found.append((shown, item["regions"]))
    return found


@pytest.fixture
def expected(tmp_path):
    return contents(conversations.load(conversations.write(tmp_path, SAMPLES)))


def write_all(folder) -> list[Path]:
    """The samples as JSON lines, shards, a saved data set and a table."""
    dataset = data_files.hf_dataset(SAMPLES)
    dataset.save_to_disk(folder / "saved")
    dataset.to_parquet(folder / "rows.parquet")
    written = data_files.write_jsonl(folder, SAMPLES), data_files.write_shards(folder, SAMPLES)
    return [*written, folder / "saved", folder / "rows.parquet"]


def test_every_format_holds_the_same_samples_as_json_and_names_them(tmp_path, expected):
    datasets = [conversations.load(path) for path in write_all(tmp_path)]
    assert [contents(dataset) for dataset in datasets] == [expected] * 4
    places = ["samples.jsonl, line 11", "shard-1.tar, sample 1", "saved, row 5", "rows.parquet, row 5"]
    assert [dataset[5]["name"] for dataset in datasets] == [f"{tmp_path}/{place} (id s5)" for place in places]
    assert contents(conversations.load(data_files.write_jsonl(tmp_path, SAMPLES[::-1]))) != expected


def test_columns_of_other_names_and_plain_text_are_understood(tmp_path):
    rows = {"caption": ["A sky."], "dialogue": [[{"role": "user", "content": "<image>\nWhat?"}]], "file": ["0.png"]}
    rows["dialogue"][0].append({"role": "assistant", "content": "A sky."})
    tiny.image(0).save(tmp_path / "0.png")
    data_files.Dataset.from_dict(rows).to_parquet(tmp_path / "rows.parquet")
    options = {"image_folder": str(tmp_path), "columns": {"messages": "dialogue", "images": "file"}}
    dataset = conversations.load(tmp_path / "rows.parquet", **options)
    parts = [part["type"] for message in dataset[0]["messages"] for part in message["content"]]
    assert parts == ["image", "text", "text"]
    with pytest.raises(BrokenSampleError, match=r"rows\.parquet, row 0: no column 'talk'; there are \['caption'"):
        conversations.load(tmp_path / "rows.parquet", columns={"messages": "talk"})[0]


def test_images_are_opened_only_when_their_sample_is_encoded_and_not_above_max_image_pixels(tmp_path, monkeypatch):
    files = []
    monkeypatch.setattr(Image, "open", lambda file, _open=Image.open: files.append(file) or _open(file))
    paths = write_all(tmp_path)
    files.clear()
    for path in paths:
        dataset = conversations.load(path)
        assert dataset[2] and not files
        opened(dataset[2])
        assert len(files) == 2
        with pytest.raises(BrokenSampleError, match=r"\(id s2\): .*max_image_pixels"):
            opened(dataset[2], max_image_pixels=100)
        files.clear()


LINES = [("{", "Expecting"), ('"x"', "a sample must be an object"), ("{}", "a sample needs"), (data_files.DEEP, "")]
LINES += [('{"x": ' * 200_000, ""), ("9" * 5000, ""), ('{"regions": [[[0, 0, 1%s, 9]]]}' % ("0" * 400), "")]


@pytest.mark.parametrize(("line", "message"), LINES)
def test_broken_line_is_named_by_its_number_and_counted_in_a_run_that_skips(tmp_path, line, message):
    path = data_files.write_jsonl(tmp_path, [sample(0), sample(1)])
    path.write_text(path.read_text() + "\n" + line)
    with pytest.raises(BrokenSampleError, match=f"{path}, line 4: {message}"):
        conversations.load(path)
    assert data_files.read_all(path, policy="skip") == 2


def write_tar(folder, *members: dict[str, bytes], images=()):
    with tarfile.open(folder / "x.tar", "w") as tar:
        for index, each in enumerate(members):
            data_files.add_sample(tar, f"k{index}", each, images)
    return folder / "x.tar"


def test_captions_of_shards_become_answers_and_a_member_that_nothing_reads_is_refused_unless_it_is_ignored(tmp_path):
    path = write_tar(tmp_path, {"txt": b"A blue sky.", "json": b'{"width": 3}'}, images=[data_files.png(0)])
    messages = conversations.load(path, instructions=["Describe."])[0]["messages"]
    texts = [part.get("text") for message in messages for part in message["content"]]
    assert texts == [None, "Describe.", "A blue sky."]
    assert conversations.load(path)[0]["messages"][0]["content"][1]["text"] in DESCRIBE  # without instructions
    path = write_tar(tmp_path, {"json": json.dumps(sample(0)).encode(), "mp4": b"\0"}, images=[data_files.png(0)])
    with pytest.raises(BrokenSampleError, match="the sample has mp4, which nothing reads"):
        conversations.load(path)[0]
    assert conversations.load(path, ignored=["mp4"])[0]


@pytest.mark.parametrize("suffix, separator", [("csv", ","), ("tsv", "\t")])
def test_every_cell_of_a_table_of_text_is_text(tmp_path, suffix, separator):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    texts = ["None", "NA", "3"]
    rows = [["question", "answer", "image"], *(["What is it?", text, "a.png"] for text in texts)]
    (tmp_path / f"rows.{suffix}").write_text("\n".join(map(separator.join, rows)))
    messages = [sample["messages"] for sample in conversations.load(tmp_path / f"rows.{suffix}")]
    assert [turns[1]["content"][0]["text"] for turns in messages] == texts


def test_texts_beside_images_are_captions_without_their_last_newline_and_others_are_not(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("\ufeffa cat\n")
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name in ("a.png", "a.txt"):
            shard.add(tmp_path / name, name)
    found = [conversations.load(path)[0]["messages"][1]["content"] for path in (tmp_path / "a.tar", tmp_path)]
    assert found == [[{"type": "text", "text": "a cat"}]] * 2
    (tmp_path / "table").mkdir()
    data_files.hf_dataset(SAMPLES).to_parquet(tmp_path / "table/rows.parquet")
    (tmp_path / "table/LICENSE.txt").write_text("MIT")
    assert len(conversations.load(tmp_path / "table")) == len(SAMPLES)


def test_shard_sample_that_lists_another_number_of_images_is_refused_in_upper_case_too(tmp_path):
    for extension in ("PNG", "Jpg", "JPEG"):
        members = {"JSON": json.dumps(sample(0)).encode(), extension: data_files.png(0)}
        content = opened(conversations.load(write_tar(tmp_path, members))[0])["messages"][0]["content"]
        assert [part["type"] for part in content] == ["image", "text"]
    listed = json.dumps(sample(0, image=["a.png", "b.png"])).encode()
    path = write_tar(tmp_path, {"json": listed}, images=[data_files.png(0)])
    with pytest.raises(BrokenSampleError, match=r"sample 0: its \.json lists 2 images, the shard holds 1"):
        conversations.load(path)[0]


@pytest.mark.parametrize(
    "names, listed, order",
    [
        (["0.png", "1.png", "10.png", "2.png"], None, [0, 1, 3, 2]),
        (["0.png", "1.png"], ["7.1.png", "a/7.0.png"], [1, 0]),
        (["b.png", "a.png"], None, [0, 1]),
        (["0.png", "1.png"], ["x.png", "y.png"], [0, 1]),
    ],
)
def test_images_of_a_shard_have_the_order_of_the_list_or_of_their_numbers(names, listed, order):
    members = {"__key__": "7", "json": {"images": listed}} | {name: place for place, name in enumerate(names)}
    assert row_of_members(members)["images"] == order


@pytest.mark.parametrize("write", [conversations.write, data_files.write_jsonl])
def test_text_of_another_encoding_is_named_and_the_mark_of_windows_is_none(tmp_path, write):
    path = write(tmp_path, [sample(0, id="ü")])
    text = path.read_text().replace("\\u00fc", "ü")
    path.write_text(text, encoding="utf-8-sig")
    assert conversations.load(path)[0]["name"].endswith("(id ü)")
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=rf"{path} is not UTF-8"):
        conversations.load(path)


def test_names_may_hold_brackets_and_a_pattern_of_several_files_is_refused(tmp_path, expected):
    folder = tmp_path / "[v1] ü"
    folder.mkdir()
    write_all(folder)
    (folder / "shard-1.tar").unlink()
    for name in ("samples.json", "samples.jsonl", "rows.parquet", "saved", "shard-0.tar"):
        assert contents(conversations.load(folder / name)) == expected[: 4 if name.endswith("tar") else 6]
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"\*\.json matches 2 files; list them as sources of a mixture"):
        conversations.load(tmp_path / "*.json")


@pytest.mark.parametrize("streaming", [False, True])
def test_file_of_other_content_is_named(tmp_path, streaming):
    for name, text in (("a.json", "{}"), ("b.json", "[]"), ("c.json", "[1,"), ("rows.parquet", "no parquet at all")):
        (tmp_path / name).write_text(text)
        reason = rf"cannot read .*{name}: .*[Pp]arquet" if name.startswith("rows") else name
        with pytest.raises(ValueError, match=reason):
            conversations.load(tmp_path / name, streaming=streaming)


def test_bad_json_in_a_shard_and_sparse_members_are_named_and_counted(tmp_path):
    with tarfile.open(tmp_path / "deep.tar", "w") as tar:
        data_files.add_sample(tar, "k0", {"json": data_files.DEEP.encode()})
        data_files.add_sample(tar, "k1", {"json": json.dumps(sample(0)).encode()}, [data_files.png(0)])
    assert data_files.read_all(tmp_path / "deep.tar", "skip") == 1
    with tarfile.open(tmp_path / "sparse.tar", "w") as tar:  # 3 KB that say they are 1 TB
        member = tarfile.TarInfo("GNUSparseFile.0/k0.json")
        member.size, member.pax_headers = 512, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        member.pax_headers |= {"GNU.sparse.name": "k0.json", "GNU.sparse.realsize": str(10**12)}
        tar.addfile(member, io.BytesIO(b"0\n".ljust(512, b"\0")))
    with data_files.in_little_time_and_memory(most_bytes=2**22):
        assert data_files.read_all(tmp_path / "sparse.tar", policy="skip") == 0
        with pytest.raises(BrokenSampleError, match=r"sparse\.tar, sample 0: .* is a sparse member"):
            conversations.load(tmp_path / "sparse.tar")[0]


def test_shard_that_is_cut_off_compressed_joined_or_has_a_damaged_head_is_refused(tmp_path):
    data_files.write_shards(tmp_path, data_files.mixed(4), per_shard=2)
    path, other = (tmp_path / f"shard-{index}.tar" for index in range(2))
    assert data_files.read_all(path) == 2
    with tarfile.open(path) as tar:
        second = tar.getmembers()[2].offset
    whole, follows = path.read_bytes(), ".*data follows the end or .* at byte \\d+"
    broken = {whole[:2000]: "", gzip.compress(whole): "", whole + other.read_bytes(): follows}
    for content, reason in (broken | {whole[:second] + b"?" * 512 + whole[second + 512 :]: follows}).items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"shard-0\.tar is not a complete, uncompressed tar file{reason}"):
            conversations.load(path)
