"""evaluation/questions.py: files of questions, each with the true turns before it; opened images."""

import json

import conversations
import data_files
import pytest
import tiny
from conversations import sample, turn
from datasets import Dataset
from pixels import stored_turned

from omnifusion_hf.evaluation.questions import Question, image_parts, opened, read_questions, with_images


DIALOG = [turn("human", "<image>\nWhat is it?"), turn("gpt", "A cat."), turn("human", "Where?"), turn("gpt", "Left.")]


def test_each_question_of_a_dialog_has_the_true_turns_before_it(tmp_path):
    samples = [sample(0), sample(1, conversations=DIALOG, task="cats"), sample(2, id="s0", task="same id")]
    first, second, third, fourth = read_questions(conversations.write(tmp_path, samples))
    assert (fourth.name, fourth.task) == ("s0", "same id")
    assert (first.name, first.task) == ("s0", "samples")
    assert (first.text, first.truth) == ("What colour is the sky?", "The sky is blue.")
    assert (second.name, second.task, second.truth) == ("s1, turn 1", "cats", "A cat.")
    assert (third.name, third.text, third.truth) == ("s1, turn 2", "Where?", "Left.")
    assert [message["role"] for message in third.messages] == ["user", "assistant", "user"]
    assert third.images == second.images == [tmp_path / "1.png"] and third.regions == [[]]


def test_a_second_question_of_a_name_and_a_file_without_a_sample_are_refused(tmp_path):
    twice, second = [sample(0), sample(1, id="s0")], r"sample 1 \(id s0\): .*sample 0 .* of the same task has this id"
    for samples, message in ((twice, second), ([], "must hold a list with at least one sample, got an empty list")):
        path = conversations.write(tmp_path, samples)
        with pytest.raises(ValueError, match=f"samples.json.*{message}"):
            read_questions(path)


def write_parquet(folder, samples):
    data_files.hf_dataset(samples).to_parquet(folder / "samples.parquet")
    return folder / "samples.parquet"


@pytest.mark.parametrize("write", [data_files.write_jsonl, data_files.write_shards, write_parquet])
def test_every_format_gives_the_same_questions_and_images(tmp_path, processor, write):
    (tmp_path / "other").mkdir()
    samples, found = data_files.mixed(3), []
    for path in (conversations.write(tmp_path, samples), write(tmp_path / "other", samples)):
        questions = read_questions(path)
        images = [image_parts(opened(processor, question)) for question in questions]
        pixels = [[part["image"].tobytes() for part in parts] for parts in images]
        found.append([(each.name, each.text, each.truth, *given) for each, given in zip(questions, pixels)])
    assert found[0] == found[1]
    assert len({row[3:] for row in found[0]}) == 4  # control: their images differ


def test_images_inside_a_row_are_named_by_their_place_and_not_kept(tmp_path):
    path = write_parquet(tmp_path, data_files.mixed(3))
    images = [str(image) for question in read_questions(path)[2:] for image in question.images]
    assert images == [f"{path}, row 2, image {number}" for number in (0, 0, 1)]


UNANSWERED = [{"question": "Why?"}, {"question": "Why?", "answer": None}]
UNANSWERED += [{"messages": [{"role": "user", "content": "Why?"}]}]
UNANSWERED += [{"conversations": [*DIALOG[:2], turn("human", "Why?")]}]


def test_a_broken_image_inside_a_row_is_named_by_its_question(processor, tmp_path):
    row = {"question": "Why?", "answer": "So.", "image": {"bytes": data_files.image_files(sample(0))[0][:60]}}
    Dataset.from_list([row]).to_parquet(tmp_path / "rows.parquet")
    (question,) = read_questions(str(tmp_path / "rows.parquet"))
    with pytest.raises(ValueError, match=f"{question.name}: .*broken"):
        opened(processor, question)


@pytest.mark.parametrize("row", UNANSWERED)
def test_a_question_needs_neither_an_answer_nor_an_id(tmp_path, row):
    conversations.write(tmp_path, [{}, {}])
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"image": "1.png"} | row), encoding="utf-8")
    last = read_questions(path)[-1]
    assert last.text == "Why?" and last.truth is None and last.images == [tmp_path / "1.png"]
    assert last.name.partition(", turn ")[0] == "0" and last.task == "q"


def test_a_mixture_gives_every_sample_of_every_source_once(tmp_path):
    conversations.write(tmp_path, [sample(0), sample(1)])
    (tmp_path / "more.json").write_text(json.dumps([sample(1, id="x")]), encoding="utf-8")
    sources = [{"path": str(tmp_path / name), "weight": 2} for name in ("samples.json", "more.json")]
    questions = read_questions(conversations.write_mixture(tmp_path, *sources))
    assert [(each.task, each.name) for each in questions] == [("samples", "s0"), ("samples", "s1"), ("more", "x")]
    endless = conversations.write_mixture(tmp_path, sources[0] | {"streaming": True})
    with pytest.raises(ValueError, match="is a stream, which never ends"):
        read_questions(endless)


def test_columns_are_renamed_before_a_question_is_looked_at(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"q": "Why?", "number": 7, "subject": "art"}\n{"q": "Who?", "a": null}')
    columns = {"question": "q", "answer": "a", "id": "number", "task": "subject"}
    (tmp_path / "all.jsonl").write_text('{"q": "Why?", "a": "So.", "number": 7, "subject": "art"}')
    source = {"path": str(tmp_path / "all.jsonl"), "columns": columns}
    (question,) = read_questions(conversations.write_mixture(tmp_path, source))
    assert (question.name, question.task, question.truth) == ("7", "art", "So.")
    some = {"path": str(tmp_path / "q.jsonl"), "columns": {"question": "q", "answer": "a"}}
    questions = read_questions(conversations.write_mixture(tmp_path, some | {"ignored": ["number", "subject"]}))
    assert [(each.text, each.truth) for each in questions] == [("Why?", None), ("Who?", None)]


def test_images_replace_others_in_order(tmp_path):
    turns = [turn("human", "Is <image> older than <image>?"), turn("gpt", "Yes.")]
    path = conversations.write(tmp_path, [sample(0, image=["0.png", "0.png"], conversations=turns)])
    messages = read_questions(path)[0].messages
    kinds = [part.get("image", part.get("text")) for part in with_images(messages, ["a", "b"])[0]["content"]]
    assert kinds == ["Is ", "a", " older than ", "b", "?"]
    assert [part["text"] for part in with_images(messages, [])[0]["content"]] == ["Is ", " older than ", "?"]


def test_opened_images_are_upright_and_pass_through_the_change(processor, tmp_path):
    (tmp_path / "upright").write_bytes(stored_turned(tiny.image(0, (90, 40)), 6))  # (H, W)
    question, sizes = Question("0", "t", [tiny.user(tmp_path / "upright")], "x"), []
    [message] = opened(processor, question, lambda image, _: sizes.append(image.size) or image.resize((7, 5)))
    assert sizes == [(40, 90)] and message["content"][0]["image"].size == (7, 5)
