"""Every form of an image dialogue becomes the same chat messages."""

import base64
import csv
import json

import conversations
import pytest
import tiny
from conversations import opened, turn
from datasets import Dataset
from pixels import encoded


QUESTION, ANSWER = "What is it?", "A cat."
IMAGE = tiny.image()
PNG = encoded(IMAGE, "PNG")
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()
PART = {"type": "text", "text": QUESTION}


def messages(*parts: dict) -> dict:
    return {"messages": [{"role": "user", "content": [*parts, PART]}, {"role": "assistant", "content": ANSWER}]}


FORMS = {
    "LLaVA": {"image": "a.png", "conversations": [turn("human", QUESTION), turn("gpt", ANSWER)]},
    "image in a part": messages({"type": "image", "image": "a.png"}),
    "path in a part": messages({"type": "image", "path": "a.png"}),
    "data URI as url": messages({"type": "image", "url": URI}),
    "base64": messages({"type": "image", "base64": URI}),
    "OpenAI": messages({"type": "image_url", "image_url": {"url": URI, "detail": "low"}}),
    "image beside messages": messages() | {"image": "a.png"},
    "question and answer": {"image": "a.png", "question": QUESTION, "answer": ANSWER},
    "query and response": {"images": ["a.png"], "query": QUESTION, "response": ANSWER},
    "Alpaca": {"image": "a.png", "instruction": QUESTION, "input": "", "output": ANSWER},
    "the_cauldron": {"images": ["a.png"], "texts": [{"user": QUESTION, "assistant": ANSWER, "source": "x"}]},
}  # fmt: skip


def read(folder, rows: list[dict]) -> list[dict]:
    """The messages of rows in a JSON file beside `a.png`, their images opened."""
    (folder / "a.png").write_bytes(PNG)
    (folder / "rows.json").write_text(json.dumps(rows))
    return [opened(sample)["messages"] for sample in conversations.load(folder / "rows.json")]


@pytest.mark.parametrize("form", FORMS)
def test_forms_give_the_same_messages(form, tmp_path):
    (found,) = read(tmp_path, [FORMS[form]])
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


@pytest.mark.parametrize("ending, separator", [("csv", ","), ("tsv", "\t")])
def test_a_table_of_questions_is_read_with_images_beside_it(ending, separator, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    with (tmp_path / f"t.{ending}").open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([["image", "question", "answer"], ["a.png", QUESTION, ANSWER]])
    data = conversations.load(tmp_path / f"t.{ending}")
    assert opened(data[0])["messages"][0]["content"][0]["image"].tobytes() == IMAGE.tobytes()
    Dataset.from_list([{"question": QUESTION, "answer": ANSWER}]).to_parquet(tmp_path / "t.parquet")
    data = conversations.load(tmp_path / "t.parquet")
    assert data[0]["messages"][1]["content"][0]["text"] == ANSWER


def test_a_folder_of_images_with_captions_is_read_and_odd_files_are_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(PNG)
        (tmp_path / f"{name}.txt").write_text(f"Caption {name}.\n")
    data = conversations.load(tmp_path)
    assert [data[i]["messages"][1]["content"][0]["text"] for i in range(2)] == ["Caption a.", "Caption b."]
    (tmp_path / "c.txt").write_text("Alone.")
    with pytest.raises(ValueError, match=r"c\.txt has no partner"):
        conversations.load(tmp_path)
