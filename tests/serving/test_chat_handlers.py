"""serving/chat_handlers.py without a browser; tests/serving/test_gradio_app.py clicks on the page."""

import pytest

from omnifusion_hf.inference import TINY
from omnifusion_hf.serving.conversation import Conversation, joined, text_part, user_turn


gr = pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'omnifusion_hf[demo]'")

from omnifusion_hf.serving import chat_handlers as module  # noqa: E402


SHAPE, COUNT = (str(TINY / f"images/{name}-1.png") for name in ("shape", "count"))
QUESTION = {"text": "What shape is black?", "files": [SHAPE]}
PLAIN = ("whole", "", "", 0, 512)


def event(kind, **data):
    return kind(None, {"value": None, "previous_value": None} | data)


@pytest.fixture
def handlers(demo):
    return module.ChatHandlers(Conversation(*demo))


@pytest.fixture
def chat(handlers) -> list[dict]:
    """Two questions, the first with an image, and their answers."""
    *_, (_, chat, *_) = handlers.ask(QUESTION, [], *PLAIN)
    *_, (_, chat, *_) = handlers.ask({"text": "What color is it?", "files": []}, chat, *PLAIN)
    return chat


def test_a_question_is_asked_again_with_its_images_and_without_later_turns(handlers, chat):
    assert [turn["role"] for turn in joined(chat)] == ["user", "assistant"] * 2
    *_, (_, again, *_) = handlers.retry(chat, event(gr.RetryData, index=[1, 0]), *PLAIN)
    assert again == chat[:3] and again[-1]["content"] == [text_part("star")]
    edited = event(gr.EditData, index=1, value="What color is the star?")
    *_, (_, other, *_) = handlers.edit(chat, edited, *PLAIN)
    assert joined(other)[0] == user_turn("What color is the star?", [SHAPE]) and other[-1] != again[-1]


def test_a_question_taken_back_returns_to_its_box(handlers, chat):
    question, earlier = handlers.undo(chat, event(gr.UndoData, index=3))
    assert question == {"text": "What color is it?", "files": []} and earlier == chat[:3]
    assert handlers.undo(earlier, event(gr.UndoData, index=1)) == (QUESTION, [])


def test_an_answer_for_programs_follows_the_settings(handlers):
    answers = [handlers.answer(QUESTION, *given) for given in (PLAIN, ("grid", "0, 0, 900, 900", "", 0, 512))]
    assert answers == ["star", "star"]
    assert handlers.answer(QUESTION | {"files": [COUNT]}, *PLAIN) != "star"  # control


def test_a_region_is_drawn_once_both_corners_are_known(handlers):
    def cost(regions: str):
        return handlers.redraw(QUESTION, [], "whole", regions, *PLAIN[2:])[1]

    assert "1 view " in cost("") and "2 views" in cost("10, 10, 90, 90")
    assert cost("10, 10, 90, 90\n20, 30") == gr.skip()


def test_clicks_become_boxes_whatever_the_order_of_the_corners():
    regions = "1, 2, 3, 4"
    for corner in ([150, 20], [30, 140], [7, 8]):
        regions = module.add_corner(regions, event(gr.SelectData, index=corner))
    assert regions.splitlines() == ["1, 2, 3, 4", "30, 20, 150, 140", "7, 8"] and module.has_half(regions)
    assert module.add_corner("", event(gr.SelectData, index=[5, 6])) == "5, 6"


def test_regions_are_gone_with_the_next_image(handlers):
    chat = module.turns_of(QUESTION)
    assert module.look({"text": "", "files": []}, chat, None) == (SHAPE, SHAPE, "")
    assert module.look({"text": "", "files": [COUNT]}, chat, SHAPE) == (COUNT, COUNT, "")
    assert module.look({"text": "more", "files": []}, chat, SHAPE) == (gr.skip(),) * 3  # control: the same image
