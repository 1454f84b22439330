"""Every form of an image dialogue becomes the same chat messages."""

import base64
import csv
import json
from itertools import islice
from pathlib import Path

import conversations
import pytest
import tiny
from conversations import opened, turn
from datasets import ClassLabel, Dataset, Features, Value
from pixels import encoded


QUESTION, ANSWER = "What is it?", "A cat."
IMAGE = tiny.image()
PNG = encoded(IMAGE, "PNG")
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()
PART = {"type": "text", "text": QUESTION}


def messages(*parts: dict) -> dict:
    return {
        "messages": [
            {"role": "user", "content": [*parts, PART]},
            {"role": "assistant", "content": [PART | {"text": ANSWER}]},
        ]
    }


FORMS = {
    "LLaVA": {"image": "a.png", "conversations": [turn("human", QUESTION), turn("gpt", ANSWER)]},
    "image in a part": messages({"type": "image", "image": "a.png"}),
    "path in a part": messages({"type": "image", "path": "a.png"}),
    "data URI as url": messages({"type": "image", "url": URI}),
    "data URI as base64": messages({"type": "image", "base64": URI}),
    "base64": messages({"type": "image", "base64": URI.partition(",")[2]}),
    "file URL": messages({"type": "image", "url": "file://FOLDER/a.png"}),
    "OpenAI": messages({"type": "image_url", "image_url": {"url": URI, "detail": "low"}}),
    "OpenAI, short": messages({"type": "image_url", "image_url": URI}),
    "image beside messages": messages() | {"image": "a.png"},
    "question and answer": {"image": "a.png", "question": QUESTION, "answer": ANSWER},
    "query and response": {"images": ["a.png"], "query": QUESTION, "response": ANSWER},
    "Alpaca": {"image": "a.png", "instruction": QUESTION, "input": "", "output": ANSWER},
    "the_cauldron": {"images": ["a.png"], "texts": [{"user": QUESTION, "assistant": ANSWER, "source": "x"}]},
    "caption": {"image": "a.png", "caption": ANSWER},
    "text of an imagefolder": {"image": "a.png", "text": ANSWER},
}  # fmt: skip


def read(folder: Path, rows: list[dict], kept: str = "json") -> list[dict]:
    """The messages of rows that are kept in a file beside `a.png`, their images opened."""
    (folder / "a.png").write_bytes(PNG)
    written = json.dumps(rows).replace("FOLDER", str(folder))
    path, options = folder / f"rows.{'jsonl' if kept == 'jsonl' else 'json'}", {"image_folder": str(folder)}
    options |= {"instructions": [QUESTION]} if {"caption", "text"} & rows[0].keys() else {}
    path.write_text(written[1:-1] if kept == "jsonl" else written)  # one row
    if kept in ("parquet", "streamed"):
        path, options = folder / "rows.parquet", options | {"streaming": kept == "streamed"}
        Dataset.from_list(json.loads(written)).to_parquet(path)
    if kept == "mixture":
        path, options = conversations.write_mixture(folder, {"path": str(path)} | options), {}
    return [opened(sample)["messages"] for sample in islice(conversations.load(path, **options), len(rows))]


@pytest.mark.parametrize("kept", ["json", "jsonl", "parquet", "streamed", "mixture"])
@pytest.mark.parametrize("form", FORMS)
def test_forms_give_the_same_messages(form, kept, tmp_path):
    (found,) = read(tmp_path, [FORMS[form]], kept)
    image, text = found[0]["content"]
    assert image["image"].tobytes() == IMAGE.tobytes() and text == PART
    assert [message["role"] for message in found] == ["user", "assistant"]
    assert found[1]["content"] == [{"type": "text", "text": ANSWER}]


def test_the_input_of_alpaca_and_a_system_column_are_kept(tmp_path):
    row = {"instruction": "Translate", "input": "cat", "output": "кот", "system": "Be brief."}
    (found,) = read(tmp_path, [row])
    assert [(m["role"], m["content"][0]["text"]) for m in found] == [
        ("system", "Be brief."), ("user", "Translate\ncat"), ("assistant", "кот")
    ]  # fmt: skip


@pytest.mark.parametrize("other", [{"problem": "2?", "solution": "2"}, {"texts": [{"user": "2?", "assistant": "2"}]}])
def test_a_row_of_two_dialogues_is_refused(other, tmp_path):
    one = {"question": QUESTION, "answer": ANSWER}
    with pytest.raises(ValueError, match="and another dialogue; name one of them under `ignored`"):
        read(tmp_path, [one | other])
    assert read(tmp_path, [one])  # control


@pytest.mark.parametrize("ending, separator", [("csv", ","), ("tsv", "\t")])
def test_a_table_of_questions_is_read_with_images_beside_it(ending, separator, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    with (tmp_path / f"t.{ending}").open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([["image", "question", "answer"], ["a.png", QUESTION, ANSWER]])
    data = conversations.load(tmp_path / f"t.{ending}")
    assert opened(data[0])["messages"][0]["content"][0]["image"].tobytes() == IMAGE.tobytes()


def test_a_folder_of_images_with_captions_is_read_and_odd_files_are_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(PNG)
        (tmp_path / f"{name}.txt").write_text(f"Caption {name}.\n")
    data = conversations.load(tmp_path)
    assert [data[i]["messages"][1]["content"][0]["text"] for i in range(2)] == ["Caption a.", "Caption b."]
    (tmp_path / "c.txt").write_text("Alone.")
    with pytest.raises(ValueError, match=r"c\.txt has no partner"):
        conversations.load(tmp_path)


def test_a_folder_of_captions_is_streamed_too(tmp_path):
    for name, text in (("a", ANSWER.encode()), ("b", b"\xff")):
        (tmp_path / f"{name}.png").write_bytes(PNG)
        (tmp_path / f"{name}.txt").write_bytes(text)
    found = list(islice(conversations.load(tmp_path, policy="skip", streaming=True), 3))
    assert {sample["messages"][1]["content"][0]["text"] for sample in found} == {ANSWER}
    assert opened(found[0])["messages"][0]["content"][0]["image"].tobytes() == IMAGE.tobytes()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_named_as_a_reader_is_that_folder_alone(streaming, tmp_path, monkeypatch):
    for name in ("imagefolder", "beside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(PNG)
        (tmp_path / name / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": name}))
    monkeypatch.chdir(tmp_path)
    found = islice(conversations.load("imagefolder", streaming=streaming), 1 + streaming)
    assert {sample["messages"][1]["content"][0]["text"] for sample in found} == {"imagefolder"}


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unknown_class_is_an_empty_column(streaming, tmp_path):
    features = Features({name: Value("string") for name in ("question", "answer")} | {"label": ClassLabel(2)})
    rows = [{"question": QUESTION, "answer": ANSWER, "label": -1}]
    Dataset.from_list(rows, features).to_parquet(tmp_path / "t.parquet")
    assert next(iter(conversations.load(tmp_path / "t.parquet", streaming=streaming)))


@pytest.mark.parametrize("streaming", [False, True])
def test_an_imagefolder_gives_its_metadata_or_the_names_of_its_classes(streaming, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "1.png").write_bytes(PNG)
    (tmp_path / "told").mkdir()
    (tmp_path / "told/a.png").write_bytes(PNG)
    (tmp_path / "told/metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": ANSWER}))
    told = conversations.load(tmp_path / "told", streaming=streaming)
    named = conversations.load(tmp_path / "classes", columns={"caption": "label"}, streaming=streaming)
    answers = [sample["messages"][1]["content"][0]["text"] for sample in (*islice(told, 1), *islice(named, 2))]
    assert answers[0] == ANSWER and {*answers[1:]} == {"cat", "dog"}
    with pytest.raises(ValueError, match="the sample has label, which nothing reads"):
        conversations.load(tmp_path / "classes", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_that_nothing_reads_are_named_when_data_is_opened(streaming, tmp_path):
    Dataset.from_list([{"frage": QUESTION, "antwort": ANSWER}]).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="the sample has frage, antwort, which nothing reads"):
        conversations.load(tmp_path / "t.parquet", streaming=streaming)
    columns = {"question": "frage", "answer": "antwort"}
    assert conversations.load(tmp_path / "t.parquet", streaming=streaming, columns=columns)
