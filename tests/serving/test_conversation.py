"""serving/conversation.py: turns reach the model, answers stream, no thread is left behind."""

import re
import threading
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from omnifusion_hf import inference as ask
from omnifusion_hf.serving.conversation import Conversation, read_boxes, text_part, user_turn


pytestmark = pytest.mark.timeout(120)  # an answer that does not end would be waited for


@pytest.fixture
def conversation(demo) -> Conversation:
    return Conversation(*demo)


def bundled(name: str) -> str:
    return str(ask.EXAMPLES.parent / name)


def answered(text: str) -> dict:
    return {"role": "assistant", "content": [text_part(text)]}


def answers(conversation: Conversation, said: list[dict], view_strategy: str = "whole") -> list[str]:
    """Every state of a growing answer."""
    return list(conversation.answer(conversation.prompt(conversation.messages(said), view_strategy)))


def writers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("answer")]


SYSTEM = "{{% for m in messages if m.role == 'system' %}}{{{{ {} }}}}{{% endfor %}}Hi"
DESCRIBE = user_turn("Describe the image.", [bundled("count-1.png")])


@pytest.mark.parametrize("image, shape", [("colour-1.png", "cross"), ("shape-1.png", "star")])
def test_a_second_turn_knows_the_image_of_the_first(conversation, image, shape):
    first = user_turn("How many objects are there?", [bundled(image)])
    assert answers(conversation, [first, answered("2"), user_turn("What shape is black?", [])])[-1] == shape


def test_images_of_all_turns_keep_their_order(conversation):
    names = ["digit-1.png", "count-1.png", "colour-1.png"]
    files = [bundled(name) for name in names]
    messages = conversation.messages([user_turn("A?", files[:1]), answered("b"), user_turn("C?", files[1:])])
    found = [[part.get("text") or part["image"].filename for part in message["content"]] for message in messages]
    assert found == [[names[0], "A?"], ["b"], [*names[1:], "C?"]]
    given = conversation.prompt(messages, "whole")["pixel_values"]
    expected = conversation.processor.image_processor(files, return_tensors="pt")["pixel_values"]
    assert torch.equal(given, expected) and not torch.equal(given, expected.flip(0))  # control: the order counts


def test_the_view_strategy_is_that_of_the_call(conversation):
    messages = conversation.messages([user_turn("What?", [bundled("colour-1.png")])])
    for strategy, views in (("whole", 1), ("grid", 5)):
        assert len(conversation.prompt(messages, strategy)["pixel_values"]) == views
        drawing, count = conversation.draw_last(messages, strategy)
        assert count.views == [views] and count.context_length == 1024 and drawing.size[0] > 100
    assert conversation.draw_last([], "grid") == (None, None)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_file_is_named_with_the_reason_and_a_phones_photograph_with_a_second_image_is_none(
    conversation, tmp_path
):
    red, blue = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "photo.jpg", format="MPO", save_all=True, append_images=[blue])
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "short.png").write_bytes(data[:1500])
    (tmp_path / "damaged.png").write_bytes(data[:60] + bytes(200) + data[260:])
    Image.new("RGB", (9, 9)).save(tmp_path / "page.png", format="EPS")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    reasons = {"text.png": "Not an image file", "short.png": "is broken", "damaged.png": "is broken"}
    reasons |= {"page.png": "in PostScript", "bomb.png": "max_image_pixels", "gone.png": "no longer here"}
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=f"^{name}.*{reason}"):
            conversation.messages([user_turn("What?", [str(tmp_path / name)])])
    good = [str(tmp_path / name) for name in ("photo.jpg", "whole.png")]  # control
    photo = conversation.messages([user_turn("What?", good)])[0]["content"][0]["image"]
    assert photo.size == (40, 30) and photo.getpixel((20, 15))[0] > 200


TOO_MUCH = [("What??", 9, "9 images, more than 8"), ("w" * 2001, 0, "2001 characters, at most 2000")]


@pytest.mark.parametrize("text, num_images, reason", [*TOO_MUCH, (" \n", 1, "question is missing")])
def test_too_many_images_or_characters_and_a_missing_question_are_refused(conversation, text, num_images, reason):
    files = [bundled("colour-1.png")] * num_images
    with pytest.raises(ValueError, match=reason):
        conversation.messages([user_turn(text, files)])
    assert conversation.messages([user_turn(text[:-1].strip() or "What?", files[1:])])  # control: one less is accepted


def test_a_chat_longer_than_the_context_is_refused_with_the_numbers(conversation):
    said = [user_turn("What?", [bundled("colour-1.png")] * 6)]
    messages = conversation.messages(said)
    with pytest.raises(ValueError, match=r"takes 1\d\d\d tokens, .* context has 1024"):
        conversation.prompt(messages, "grid")
    num_tokens = conversation.prompt(messages, "whole")["input_ids"].shape[1]  # control: these fit
    conversation.context_length = num_tokens + 2
    assert len(conversation.processor.tokenizer(answers(conversation, said)[-1]).input_ids) <= 2
    conversation.context_length = None
    assert conversation.prompt(messages, "grid")["input_ids"].shape[1] > 1024


def test_a_generation_that_fails_raises_and_leaves_no_thread(conversation, monkeypatch):
    failing = Mock(side_effect=RuntimeError("out of memory"))
    monkeypatch.setattr(conversation.model.model.language_model, "forward", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        answers(conversation, [user_turn("What?", [])])
    assert not writers()


def test_a_closed_answer_stops_the_model_and_leaves_no_thread(conversation, demo, monkeypatch):
    """As when the page is closed or the stop button is pressed."""
    steps, forward, go_on = [], conversation.model.model.language_model.forward, threading.Semaphore(2)

    def stepwise(*args, **kwargs):
        assert go_on.acquire(timeout=20)
        steps.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(conversation.model.model.language_model, "forward", stepwise)
    answer = conversation.answer(conversation.prompt(conversation.messages([DESCRIBE]), "whole"))
    next(answer)
    assert writers()
    threading.Timer(0.2, go_on.release, [100]).start()
    answer.close()
    assert not writers() and len(steps) <= 4
    grown = answers(conversation, [DESCRIBE])  # control: without a close it continues, to the answer of `ask`
    said = ask.answer_question(*demo, [bundled("count-1.png")], "Describe the image.")
    assert len(set(grown)) > 10 and grown[-1] == said


def test_regions_are_views_of_the_last_image_alone(conversation):
    messages = conversation.messages([user_turn("What?", [bundled("colour-1.png"), bundled("shape-1.png")])])
    plain, boxed = (conversation.prompt(messages, "whole", boxes) for boxes in ([], [[10, 10, 90, 90]]))
    assert boxed["image_view_index"].tolist() == [0, 0, 1] and plain["image_view_index"].tolist() == [0, 0]
    assert torch.equal(boxed["pixel_values"][:2], plain["pixel_values"])
    assert conversation.draw_last(messages, "whole", [[10, 10, 90, 90]])[1].views == [1, 2]
    with pytest.raises(ValueError, match="Regions need an image"):
        conversation.prompt(conversation.messages([user_turn("What?", [])]), "whole", [[10, 10, 90, 90]])


def test_boxes_are_read_line_by_line():
    assert read_boxes("1,2, 3,4.5\n\n 5,6,7,8 ") == [[1, 2, 3, 4.5], [5, 6, 7, 8]]
    for text in ("1,2,3", "1,2,3,4,5", "1,2,3,x"):
        with pytest.raises(ValueError, match=f"The region '{text}' is not four numbers"):
            read_boxes(f"1,2,3,4\n{text}")


@pytest.mark.parametrize("reads, takes", [("m.content[0].text", True), ("''", False), ("raise_exception(1)", False)])
def test_instructions_are_offered_where_the_chat_template_shows_them(conversation, reads, takes, monkeypatch):
    assert conversation.takes_system_prompt()
    monkeypatch.setattr(conversation.processor, "chat_template", SYSTEM.format(reads))
    assert conversation.takes_system_prompt() is takes


def test_instructions_come_before_the_first_turn(conversation):
    with_them, without = (conversation.messages([user_turn("Hello", [])], given) for given in ("Be brief.", " "))
    ids = conversation.prompt(with_them, "whole")["input_ids"][0]
    assert re.search(r"Be brief\..*Hello", conversation.processor.decode(ids), re.S)
    assert [message["role"] for message in without] == ["user"]


def test_an_answer_is_sampled_above_a_temperature_of_0_and_as_long_as_asked(conversation):
    inputs = conversation.prompt(conversation.messages([DESCRIBE]), "whole")
    greedy, hot = ({list(conversation.answer(inputs, heat))[-1] for _ in range(4)} for heat in (0, 2.0))
    assert len(greedy) == 1 < len(hot)
    assert len(list(conversation.answer(inputs, max_new_tokens=3))) == 3 < len(list(conversation.answer(inputs)))
