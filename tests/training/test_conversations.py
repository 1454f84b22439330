"""LLaVA-format data: where images go, what is refused and how it is named."""

import re
from io import BytesIO
from pathlib import Path

import conversations
import pytest
import tiny
from conversations import opened, sample, turn

from omnifusion_hf.training.conversations import BadSamples, BrokenSampleError, map_good, to_messages


def flat(messages: list[dict]) -> list[tuple]:
    """Messages as (role, part, part, …), an image as its file name in brackets."""
    shown = lambda part: f"[{part['image']}]" if part["type"] == "image" else part["text"]  # noqa: E731
    return [(message["role"], *map(shown, message["content"])) for message in messages]


MARKED = [("<image>\nWhat?", "a", ("[a]", "What?")), ("What?\n<image>", "a", ("What?", "[a]"))]
MARKED += [("<image>", "a", ("[a]",)), ("<image><image>\nWhich?", ["a", "b"], ("[a]", "[b]", "Which?"))]
MARKED += [("Is <image> or\n<image>\nbigger?\nSay.", ["a", "b"], ("Is ", "[a]", " or", "[b]", "bigger?\nSay."))]
MARKED += [("What?", ["a", "b"], ("[a]", "[b]", "What?")), ("What is <image>?", None, ("What is <image>?",))]
MARKED += [("What?", [], ("What?",))]


def test_marks_become_images_in_their_place_in_the_order_of_the_list():
    for question, image, content in MARKED:
        turns = [turn("human", question), turn("gpt", "It is <image>\n.")]
        expected = [("user", *content), ("assistant", "It is <image>\n.")]
        assert flat(to_messages({"image": image, "conversations": turns})) == expected
    said = [("system", "Be brief."), ("user", "<image>A?"), ("assistant", "x"), ("human", "B? <image>"), ("gpt", "y")]
    messages = to_messages({"image": ["a", "b"], "conversations": [turn(*each) for each in said]})
    expected = [said[0], ("user", "[a]", "A?"), said[2], ("user", "B? ", "[b]"), ("assistant", "y")]
    assert flat(messages) == expected


QUESTION, ANSWER = sample(1)["conversations"]


def chat(answer) -> dict:
    """Changes that make a sample a chat with this answer."""
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    return {"conversations": None, "messages": [question, {"role": "assistant", "content": answer}]}


BROKEN = {
    "1 `<image>` marks in human turns for 2 images": {"image": ["0.png", "1.png"]},
    "2 `<image>` marks in human turns for 1 images": {"conversations": [turn("human", "<image><image>A?"), ANSWER]},
    "unknown role 'bot'": {"conversations": [QUESTION, turn("bot", "x")]},
    "unknown role None": {"conversations": [QUESTION, "x"]},
    "unknown role ['gpt']": {"conversations": [QUESTION, turn(["gpt"], "x")]},
    "must be text, got 3": {"conversations": [QUESTION, turn("gpt", 3)]},
    "an empty assistant turn": {"conversations": [QUESTION, turn("gpt", " \n")]},
    "an empty user turn": {"conversations": [QUESTION, ANSWER, turn("human", ""), ANSWER]},
    "turns must alternate": {"conversations": [QUESTION, ANSWER, ANSWER]},
    "human first and gpt last": {"conversations": [QUESTION]},
    "got []": {"conversations": []},
    'a list "conversations"': {"conversations": None},
    "no image file": {"image": "absent.png"},
    "aaa; set image_folder": {"image": "a" * 9999},  # base64, which is longer than any file's name
    "2 lists of regions for 1 images": {"regions": [[[0, 0, 9, 9]], []]},
    "an image, got None": {"image": [None]},
    "an image, got 3": {"image": 3},
    "part of the assistant turn is neither text nor a user's image": chat([{"type": "image"}]),
    "part of the assistant turn is neither text nor a user's image: {'type': 'video'}": chat([{"type": "video"}]),
    "the assistant turn's content must be text, got None": chat(None),
    "is not a box": {"regions": [[[0, 0, 9]]]},
    "int too large": {"regions": [[[0, 0, 10**400, 9]]]},
    "the sample has tools, videos, which nothing reads; remove it": {"tools": [{}], "videos": ["a.mp4"]},
    "the sample has image and images, which mean the same": {"images": ["0.png"]},
    "the sample has conversations and messages, which mean the same": {"messages": [{"role": "user", "content": "x"}]},
    "the gpt turn has tool_calls, which": {"conversations": [QUESTION, ANSWER | {"tool_calls": [{"name": "f"}]}]},
    "a part of the assistant turn has citations, which": chat([{"type": "text", "text": "x", "citations": [1]}]),
    "the sample has images inside its messages and beside them": {"conversations": None, "messages": [
        {"role": "user", "content": [{"type": "image", "image": "1.png"}]}, {"role": "assistant", "content": "x"}]},
    "surrogates not allowed": {"conversations": [QUESTION, turn("gpt", "\ud800")]},
    "the assistant turn holds NUL characters": {"conversations": [QUESTION, turn("gpt", "a\0b\0")]},
    "a turn needs user and assistant": {"conversations": None, "texts": [{"user": "Hi"}]},
    "keep one": chat("x") | {"system": "x", "messages": [{"role": "system", "content": "y"}, *chat("x")["messages"]]},
}  # fmt: skip


INSTRUCTIONS = ["Describe it.", "What is it?", "Say it."]


def questions(folder: Path, samples: list[dict], seed: int = 0) -> dict[str, str]:
    """The question that each answer gets in place of its own."""
    dataset = conversations.load(conversations.write(folder, samples), seed=seed, instructions=INSTRUCTIONS)
    pairs = [[part.get("text") for message in item["messages"] for part in message["content"]] for item in dataset]
    return {answer: question for _, question, answer in pairs}


def test_instruction_of_a_single_answer_is_drawn_by_seed_and_answer_and_dialogues_are_refused(tmp_path):
    answers = [turn("gpt", f"A sky, image {index}.") for index in range(40)]
    samples = [sample(index, conversations=[QUESTION, answers[index]]) for index in range(40)]
    first = questions(tmp_path, samples)
    assert set(first.values()) == set(INSTRUCTIONS)
    assert questions(tmp_path, samples[::-1]) == first != questions(tmp_path, samples, seed=1)
    longer = sample(0, conversations=[QUESTION, ANSWER, turn("human", "And?"), ANSWER])
    with pytest.raises(ValueError, match="sample 0 .*instructions need a caption or a single text answer, got"):
        questions(tmp_path, [longer])


def test_columns_that_say_nothing_or_where_a_sample_comes_from_or_that_the_source_ignores_are_passed_over(tmp_path):
    empty = {"system": None, "videos": [], "tools": "", "images": [], "messages": None}
    origin = {"model": "gpt-4", "source": "coco", "url": "https://a.b", "width": 3, "task": "vqa", "caption": "A sky."}
    turns = [QUESTION | {"weight": None}, ANSWER]
    samples = [sample(1), sample(1, **empty, **origin, conversations=turns)]
    plain, full = conversations.load(conversations.write(tmp_path, samples))
    assert [message["role"] for message in full["messages"]] == ["user", "assistant"]
    assert full["messages"][1] == plain["messages"][1]
    path = conversations.write(tmp_path, [sample(0, tools=[{"name": "f"}], images=["9.png"])])
    assert len(conversations.load(path, ignored=["tools", "images"])) == 1
    with pytest.raises(BrokenSampleError, match="has tools, which"):
        conversations.load(path, ignored=["images"])


def test_marks_in_the_text_of_chat_messages_count():
    content = [{"type": "text", "text": "<image>\nIs it"}, {"type": "text", "text": " <image>?"}]
    question = {"role": "user", "content": content}
    row = {"messages": [question, chat("It is <image>.")["messages"][1]], "images": ["a", "b"]}
    assert flat(to_messages(row)) == [("user", "[a]", "Is it ", "[b]", "?"), ("assistant", "It is <image>.")]
    with pytest.raises(ValueError, match="3 `<image>` marks in human turns for 2 images"):
        to_messages(row | {"messages": [question | {"content": [{"type": "image"}, *content]}, row["messages"][1]]})


@pytest.mark.parametrize("message", BROKEN)
def test_broken_sample_is_refused_at_load_with_file_index_and_id(tmp_path, message):
    assert len(conversations.load(conversations.write(tmp_path, [sample(0), sample(1)]))) == 2
    path = conversations.write(tmp_path, [sample(0), sample(1, **BROKEN[message])])
    with pytest.raises(ValueError, match=re.escape(f"{path}, sample 1 (id s1): ") + f".*{re.escape(message)}"):
        conversations.load(path)


def test_broken_image_of_any_kind_is_named(tmp_path):
    """Pillow's plugins raise more than OSError: the one for icns a SyntaxError."""
    path = conversations.write(tmp_path, [sample(0, image="0.icns"), sample(1)])
    file = BytesIO()
    tiny.image(0, (64, 64)).save(file, "icns")
    (tmp_path / "0.icns").write_bytes(file.getvalue())
    assert opened(conversations.load(path)[0])
    (tmp_path / "0.icns").write_bytes(file.getvalue().replace(b"IHDR\0", b"IHDR\1"))  # its checksum is wrong then
    with pytest.raises(BrokenSampleError, match=r"sample 0 \(id s0\): cannot read .*0\.icns: broken PNG"):
        opened(conversations.load(path)[0])


def test_only_broken_samples_without_a_good_one_between_them_are_too_many(monkeypatch):
    monkeypatch.setattr(BadSamples, "most_in_a_row", 3)

    def check(item: str) -> str:
        if item == "-":
            raise BrokenSampleError("broken")
        return item

    def read(items: str) -> str:
        return "".join(map_good(check, items, BadSamples("skip")))

    assert read("--a--b--") == "ab"
    with pytest.raises(ValueError, match="3 broken samples in a row, the last: broken"):
        read("--a---b")


def test_image_folder_is_the_jsons_own_unless_given_and_regions_come_with_their_image(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path = conversations.write(tmp_path, [sample(0), sample(1, regions=[[[0, 0, 9, 9], [1, 2, 3, 4]]])])
    moved = path.rename(tmp_path / "elsewhere/samples.json")
    with pytest.raises(ValueError, match="set image_folder"):
        conversations.load(moved)
    dataset = conversations.load(moved, image_folder=str(tmp_path))
    assert [item["regions"] for item in dataset] == [[[]], [[[0, 0, 9, 9], [1, 2, 3, 4]]]]
