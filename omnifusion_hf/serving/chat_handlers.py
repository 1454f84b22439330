# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Handlers of the page's events: values of its components in, their new values out."""

import re
from contextlib import closing, contextmanager
from dataclasses import dataclass

import gradio as gr
from transformers.utils import logging

from .conversation import Conversation, joined, paths_of, read_boxes, text_of, text_part, user_turn


logger = logging.get_logger(__name__)

NOTHING_SEEN = "The model's views of the last image are drawn here, with the tokens of all images."
FAILED = "The model failed on this question; the log of the server says why."


@contextmanager
def show_errors():
    """Shows errors as warnings on the page; a raised error would leave its question box locked."""
    try:
        yield
    except ValueError as error:
        gr.Warning(str(error))
    except Exception:
        logger.exception("A question failed.")
        gr.Warning(FAILED)


@dataclass(frozen=True)
class Settings:
    """The page's controls, in their order. regions: boxes of the last image, one a line."""

    view_strategy: str
    regions: str
    system: str
    temperature: float
    max_new_tokens: int


class ChatHandlers:
    """Handlers for one model. Chats are lists of turns as in conversation.py, `settings` those of [`Settings`]."""

    def __init__(self, conversation: Conversation):
        self.conversation = conversation

    def ask(self, question: dict, chat: list[dict], *settings):
        """Yields box, chat, drawing and cost while the answer grows; a refused question stays in its box."""
        yield gr.skip(), gr.skip(), gr.skip(), gr.skip()  # without a first yield Gradio would empty all of them
        with show_errors():
            chat, settings = [*chat, *turns_of(question)], Settings(*settings)
            inputs, seen = self._read(chat, settings)
            locked = gr.MultimodalTextbox(value=None, interactive=False, submit_btn=False, stop_btn=True)
            yield locked, chat, *seen
            reply = []
            with closing(self._answer(inputs, settings)) as answer:
                for written in answer:
                    reply = [{"role": "assistant", "content": [text_part(written)]}] if written.strip() else []
                    yield gr.skip(), chat + reply, gr.skip(), gr.skip()
            if not reply:
                gr.Warning("The answer is empty.")

    def retry(self, chat: list[dict], event: gr.RetryData, *settings):
        """Asks the question of an answer again."""
        question, earlier = taken_back(chat, event.index)
        yield from self.ask(question, earlier, *settings)

    def edit(self, chat: list[dict], event: gr.EditData, *settings):
        """Asks a question with another text; later turns are gone."""
        question, earlier = taken_back(chat, event.index)
        yield from self.ask(question | {"text": event.value}, earlier, *settings)

    def undo(self, chat: list[dict], event: gr.UndoData):
        """Returns the last question to its box."""
        return taken_back(chat, event.index)

    def unlock(self, chat: list[dict]):
        """Enables the box; a question without an answer, because it was stopped or failed, returns to the box."""
        free = {"interactive": True, "submit_btn": True, "stop_btn": False}
        if not chat or chat[-1]["role"] == "assistant":
            return gr.MultimodalTextbox(**free), gr.skip()
        question, chat = taken_back(chat, len(chat) - 1)
        return gr.MultimodalTextbox(value=question, **free), chat

    def redraw(self, question: dict, chat: list[dict], *settings):
        """The views of the last image, that of the box included."""
        if has_half(settings[1]):
            return gr.skip(), gr.skip()
        with show_errors():
            turns = [*chat, *turns_of({"text": "any", "files": question["files"]})]
            return self._see(self.conversation.messages(turns), Settings(*settings))
        return gr.skip(), gr.skip()

    def answer(self, question, view_strategy, regions, system, temperature, max_new_tokens) -> str:
        """The answer to one question, for programs; `question` is `{"text", "files"}`."""
        settings = Settings(view_strategy, regions, system, temperature, max_new_tokens)
        try:
            inputs, _ = self._read(turns_of(question), settings)
            *_, text = self._answer(inputs, settings)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return text

    def _read(self, chat: list[dict], settings: Settings):
        """Model inputs, and what is shown of the last image."""
        messages = self.conversation.messages(chat, settings.system)
        inputs = self.conversation.prompt(messages, settings.view_strategy, read_boxes(settings.regions))
        return inputs, self._see(messages, settings)

    def _answer(self, inputs, settings: Settings):
        return self.conversation.answer(inputs, settings.temperature, int(settings.max_new_tokens))

    def _see(self, messages: list[dict], settings: Settings):
        boxes = read_boxes(settings.regions)
        drawing, count = self.conversation.draw_last(messages, settings.view_strategy, boxes)
        cost = NOTHING_SEEN if count is None else "**Visual tokens**<br>" + str(count).replace("\n", "<br>")
        return drawing, cost


def taken_back(chat: list[dict], index: int | list[int]) -> tuple[dict, list[dict]]:
    """The question that ends at a turn, as the value of its box, and the turns before it."""
    end = index if isinstance(index, int) else index[0]  # Gradio counts turns, or turns and their parts
    start = end
    while start > 0 and chat[start - 1]["role"] == "user":
        start -= 1
    (question,) = joined(chat[start : end + 1])
    return {"text": text_of(question), "files": paths_of(question)}, chat[:start]


def turns_of(question: dict) -> list[dict]:
    """A turn for each image and one for the text: an edit replaces a whole turn by its text."""
    turn = user_turn(question["text"], question["files"])
    return [turn | {"content": [part]} for part in turn["content"]]


def pick(example: gr.SelectData) -> tuple[dict, str]:
    """An example as the value of the question box; regions are those of another image."""
    return {"text": example.value["text"], "files": [file["path"] for file in example.value["files"]]}, ""


def look(question: dict, chat: list[dict], shown: str | None):
    """The last image, and its regions if it is not the one that is shown: none so far."""
    files = [*(path for turn in chat for path in paths_of(turn)), *question["files"]]
    last = files[-1] if files else None
    return (gr.skip(),) * 3 if last == shown else (last, last, "")


def add_corner(regions: str, clicked: gr.SelectData) -> str:
    """A click is a corner of a box; the next click is the opposite one."""
    x, y = clicked.index
    *boxes, last = regions.splitlines() or [""]
    if not has_half(regions):
        return "\n".join([*boxes, last, f"{x}, {y}"]).strip()
    other_x, other_y = map(int, last.split(","))
    box = min(x, other_x), min(y, other_y), max(x, other_x), max(y, other_y)
    return "\n".join([*boxes, ", ".join(map(str, box))])


def has_half(regions: str) -> bool:
    """Whether the last region is one corner, the other not yet clicked."""
    return bool(re.search(r"^ *\d+, *\d+ *\Z", regions, re.M))
