"""evaluation/questions.py: files of questions; each question of a dialog with the true turns before it."""

import json

import conversations
import pytest
from conversations import sample, turn

from omnifusion_hf.evaluation.questions import read_questions, with_images


DIALOG = [turn("human", "<image>\nWhat is it?"), turn("gpt", "A cat."), turn("human", "Where?"), turn("gpt", "Left.")]


def test_every_question_of_a_dialog_with_the_true_turns_before_it(tmp_path):
    path = conversations.write(tmp_path, [sample(0), sample(1, conversations=DIALOG, task="cats")])
    first, second, third = read_questions(path)
    assert (first.name, first.task, first.text, first.truth) == (
        "s0",
        "samples",
        "What colour is the sky?",
        "The sky is blue.",
    )
    assert (second.name, second.task, second.truth) == ("s1, turn 1", "cats", "A cat.")
    assert (third.name, third.text, third.truth) == ("s1, turn 2", "Where?", "Left.")
    assert [message["role"] for message in third.messages] == ["user", "assistant", "user"]
    assert third.images == second.images == [tmp_path / "1.png"] and third.regions == [[]]


def test_jsonl_images_elsewhere_and_none(tmp_path):
    conversations.write(tmp_path, [sample(0)])
    (tmp_path / "asked").mkdir()
    text_only = sample(1, conversations=[turn("human", "Hello?"), turn("gpt", "Hi.")])
    del text_only["image"], text_only["id"]
    path = tmp_path / "asked" / "q.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in (sample(0), text_only)), encoding="utf-8")
    shown, alone = read_questions(path, image_folder=tmp_path)
    assert shown.images == [tmp_path / "0.png"] and shown.task == "q"
    assert alone.images == [] and alone.name == "1"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"id": "s0"}, r"sample 1 \(id s0\): its task has this id already .*sample 0"),
        ({"image": "absent.png"}, r"sample 1 \(id s1\): no image file"),
        ({"conversations": [turn("human", "<image>\nWhat?")]}, "turns must alternate"),
    ],
)
def test_broken_samples_are_named(tmp_path, changes, message):
    path = conversations.write(tmp_path, [sample(0), sample(1) | changes])
    with pytest.raises(ValueError, match=message):
        read_questions(path)


def test_the_same_id_in_two_tasks_is_fine(tmp_path):
    path = conversations.write(tmp_path, [sample(0), sample(1, id="s0", task="other")])
    assert [question.task for question in read_questions(path)] == ["samples", "other"]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.json or \.jsonl"):
        read_questions(tmp_path / "shards.tar")


def test_an_empty_list_is_called_so(tmp_path):
    (tmp_path / "q.json").write_text("[]")
    with pytest.raises(ValueError, match="q.json must hold a list with at least one sample, got an empty list"):
        read_questions(tmp_path / "q.json")


def test_images_take_the_places_of_others(tmp_path):
    path = conversations.write(tmp_path, [sample(0, image=["0.png", "0.png"], conversations=[
        turn("human", "Is <image> older than <image>?"), turn("gpt", "Yes.")])])  # fmt: skip
    messages = read_questions(path)[0].messages
    kinds = [part.get("image", part.get("text")) for part in with_images(messages, ["a", "b"])[0]["content"]]
    assert kinds == ["Is ", "a", " older than ", "b", "?"]
    assert [part["text"] for part in with_images(messages, [])[0]["content"]] == ["Is ", " older than ", "?"]
